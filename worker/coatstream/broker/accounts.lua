-- Goes in front of settle.lua and reclaim.lua: the books that both keep, and how a frame becomes a dead letter.
--
-- The books (a hash per frames stream) count what became of its entries: published, dropped, dead, trimmed. With the
-- stream's own count of entries ever added they show whether one has vanished (audit.lua). They also hold the bytes of
-- unfinished admitted entries (admit.lua adds them, this file subtracts them) and of the dead letters.

local MAX_VALUES = 7800 -- of the entry in a dead letter: Lua can pass some 8,000 values to one call, and strangers may send more
local MAX_EVICTED = 1000 -- letters that one burial may delete: a lowered bound is reached in steps
local LONG = 4096 -- bytes of a field that a letter over the bound leaves out
local WHY = 2 * 6 -- values at a letter's end that tell why the frame died
local FIELDS = {'image', 'pixels', 'width', 'height', 'format', 'source', 'frame_id', 'captured_at', 'expires_at', 'meta'}
local KNOWN = {}
for _, name in ipairs(FIELDS) do KNOWN[name] = true end

local rises = {} -- field of the books -> by how much it rises when this call ends

local function note(field, by) rises[field] = (rises[field] or 0) + by end

-- The error, if this user may not add to a stream, else nil. A right can be lost at run time, and an XADD that is refused
-- after XACK would lose a frame. No stream takes the id 0-0. At `maxmemory` the answer is OOM, which does not stop a
-- script after its first write.
local function bars_adding(stream)
  local reply = redis.pcall('XADD', stream, '0-0', 'f', 'v')
  if string.find(reply.err, 'greater than 0-0', 1, true) or string.sub(reply.err, 1, 3) == 'OOM' then return nil end
  return reply
end

-- A counter never falls below 0, and a stranger's value in it counts as 0. pcall: entries have been acknowledged already,
-- and a counter that cannot be written must not lose a frame.
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

-- Tells admission that an admitted entry is finished.
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

-- All fields and values of an entry. Of one with thousands: the known fields, then as many others as one call can take.
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

-- A letter without long fields: the short fields that fit into `room`, then why the frame died.
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

-- Adds a letter and keeps the stream within `most` letters and `most_bytes`: the oldest are deleted and counted. A letter
-- that alone is over the bound loses its picture and is counted as well.
local function add_letter(dead, books, letter, most, most_bytes)
  local size, left = size_of(letter), redis.call('XLEN', dead)
  if size > most_bytes then
    letter = shortened(letter, most_bytes)
    size = size_of(letter)
    note('dead_dropped', 1)
  end
  if left == 0 then redis.pcall('HSET', books, 'dead_bytes', 0) end -- corrects the count after XTRIM or XDEL by hand
  redis.call('XADD', dead, '*', unpack(letter))
  local bytes, evicted = raise(books, 'dead_bytes', size), 0
  left = left + 1
  while left > 1 and (left > most or bytes > most_bytes) and evicted < MAX_EVICTED do
    local oldest = redis.pcall('XRANGE', dead, '-', '+', 'COUNT', 1)[1]
    if not oldest then break end
    if redis.pcall('XDEL', dead, oldest[1]) ~= 1 then break end -- pcall: without this right the stream grows
    local freed = size_of(oldest[2])
    bytes, left, evicted = bytes - freed, left - 1, evicted + 1
    raise(books, 'dead_bytes', -freed)
  end
  note('dead_dropped', evicted)
end

-- The six pairs that tell why a frame died come last and in this order: replay.lua removes them again.
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

-- An entry that is settled and cannot be deleted must not look stranded to strand.lua: it would get a second label.
local function note_undeleted(frames, books)
  local info = redis.pcall('XINFO', 'STREAM', frames)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then redis.pcall('HSET', books, 'undeleted', info[i + 1]) end
  end
end
