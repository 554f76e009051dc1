-- Put in front of settle.lua and reclaim.lua: the books that both keep, and how a frame becomes a dead letter.
--
-- The books (a hash per frames stream) count what became of its entries: published, dropped, dead, trimmed. With the
-- stream's own count of entries ever added they show whether one has vanished (audit.lua). They also hold the bytes of
-- unfinished admitted entries (admit.lua adds, here they are taken off) and of the dead letters.

local MAX_VALUES = 7800 -- of a dead letter's own: Lua can pass some 8,000 to one call, strangers may send more
local MAX_EVICTED = 1000 -- letters that one burial may push out: a bound that was lowered is reached in steps
local LONG = 4096 -- bytes of a field that a letter over the bound does without
local WHY = 2 * 6 -- what a letter says of itself, at its end
local FIELDS = {'image', 'pixels', 'width', 'height', 'format', 'source', 'frame_id', 'captured_at', 'expires_at', 'meta'}
local KNOWN = {}
for _, name in ipairs(FIELDS) do KNOWN[name] = true end

local rises = {} -- field of the books -> by how much it rises when this call ends

local function note(field, by) rises[field] = (rises[field] or 0) + by end

-- The refusal, if this user may not add to a stream. Rights can go while we run, and after XACK that would cost a frame.
-- The id is one that no stream takes; at `maxmemory` the answer is OOM, and after our first write that no longer holds.
local function bars_adding(stream)
  local reply = redis.pcall('XADD', stream, '0-0', 'f', 'v')
  if string.find(reply.err, 'greater than 0-0', 1, true) or string.sub(reply.err, 1, 3) == 'OOM' then return nil end
  return reply
end

-- A counter never falls below 0, and what a stranger wrote there counts as nothing. pcall: by now entries have been
-- acknowledged, and a counter that cannot be written must not cost a frame.
local function raise(hash, field, by)
  local value = redis.pcall('HINCRBY', hash, field, by)
  local right = math.max(0, type(value) == 'number' and value or by)
  if value ~= right then redis.pcall('HSET', hash, field, right) end
  return right
end

local function write_books(books)
  for field, by in pairs(rises) do
    if by ~= 0 then raise(books, field, by) end
  end
end

-- The producer's side is told that an admitted entry is finished.
local function unadmit(sources, source, admitted)
  note('admitted_bytes', -admitted)
  if raise(sources, source, -1) == 0 then redis.pcall('HDEL', sources, source) end
end

-- Tells those who listen that an entry ended without a label, as docs/failure.schema.json has it.
-- pcall: a user without the right to the channel still settles the frame.
local function tell_failure(channels, now, failure)
  local text = cjson.encode
  local frame_id = failure.frame_id ~= '' and failure.frame_id or failure.entry_id
  redis.pcall('PUBLISH', channels .. failure.source,
    '{"schema":1,"frame_id":' .. text(frame_id) .. ',"entry_id":' .. text(failure.entry_id) ..
    ',"source":' .. text(failure.source) .. ',"status":' .. text(failure.status) ..
    ',"reason":' .. text(failure.reason) .. ',"error":' .. text(failure.error or cjson.null) .. ',"at":' .. now .. '}')
end

local function size_of(values)
  local bytes = 0
  for _, value in ipairs(values) do bytes = bytes + #tostring(value) end
  return bytes
end

-- All of an entry's fields and values; of one with thousands the frame's own, then as many others as one call can take.
local function own_values(values)
  if #values <= MAX_VALUES then return values end
  local kept = {}
  for _, wanted in ipairs({true, false}) do
    for i = 1, #values, 2 do
      if (KNOWN[values[i]] or false) == wanted and #kept < MAX_VALUES then
        kept[#kept + 1], kept[#kept + 2] = values[i], values[i + 1]
      end
    end
  end
  return kept
end

-- Why the frame died, and before that those of its fields that are short and find room.
local function shortened(letter, room)
  local kept, own = {}, #letter - WHY
  for i = own + 1, #letter do room = room - #tostring(letter[i]) end
  for i = 1, #letter, 2 do
    local size = #tostring(letter[i]) + #tostring(letter[i + 1])
    if i > own or (size <= LONG and size <= room) then
      kept[#kept + 1], kept[#kept + 2] = letter[i], letter[i + 1]
      if i < own then room = room - size end
    end
  end
  return kept
end

-- Adds a letter of these values and keeps the stream within `most` letters and `most_bytes`: the oldest go first, and
-- are counted. A letter that is over the bound all alone does without its picture, and is counted as well.
local function add_letter(dead, books, letter, most, most_bytes)
  local size, left = size_of(letter), redis.call('XLEN', dead)
  if size > most_bytes then
    letter = shortened(letter, most_bytes)
    size = size_of(letter)
    note('dead_dropped', 1)
  end
  if left == 0 then redis.pcall('HSET', books, 'dead_bytes', 0) end -- heals what XTRIM or XDEL by hand has left
  redis.call('XADD', dead, '*', unpack(letter))
  local bytes, evicted = raise(books, 'dead_bytes', size), 0
  left = left + 1
  while left > 1 and (left > most or bytes > most_bytes) and evicted < MAX_EVICTED do
    local oldest = redis.pcall('XRANGE', dead, '-', '+', 'COUNT', 1)[1]
    if not oldest then break end
    if redis.pcall('XDEL', dead, oldest[1]) ~= 1 then break end -- pcall: without that right letters heap up
    local freed = size_of(oldest[2])
    bytes, left, evicted = bytes - freed, left - 1, evicted + 1
    raise(books, 'dead_bytes', -freed)
  end
  note('dead_dropped', evicted)
end

-- What a letter says of itself, last and in this order (replay.lua takes these six pairs off again).
local function bury(dead, books, values, why, most, most_bytes)
  local letter = {}
  for i, value in ipairs(own_values(values)) do letter[i] = value end
  for _, value in ipairs({'reason', why.reason, 'error', why.error, 'deliveries', why.deliveries,
                          'entry_id', why.entry_id, 'died_at', why.died_at, 'worker', why.worker}) do
    letter[#letter + 1] = value
  end
  add_letter(dead, books, letter, most, most_bytes)
  note('dead', 1)
end

-- What is settled and stays must not look stranded to strand.lua: that would give it a second label.
local function note_undeleted(frames, books)
  local info = redis.pcall('XINFO', 'STREAM', frames)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then redis.pcall('HSET', books, 'undeleted', info[i + 1]) end
  end
end
