-- Put in front of settle.lua and reclaim.lua: the books that both keep, and how a frame becomes a dead letter.
--
-- The books (a hash per frames stream) count what became of its entries: published, dropped, dead, trimmed. With the
-- stream's own count of entries ever added they show whether one has vanished (audit.lua). They also hold the bytes of
-- unfinished admitted entries (admit.lua adds, here they are taken off) and of the dead letters.

local MAX_VALUES = 7800 -- of a dead letter's own: Lua can pass some 8,000 to one call, strangers may send more
local MAX_EVICTED = 1000 -- letters that one burial may push out: a bound that was lowered is reached in steps
local LONG = 4096 -- bytes of a value that a letter over the bound does without
local FIELDS = {'image', 'pixels', 'width', 'height', 'format', 'source', 'frame_id', 'captured_at', 'expires_at', 'meta'}
local KNOWN = {}
for _, name in ipairs(FIELDS) do KNOWN[name] = true end

local rises = {} -- field of the books -> by how much it rises when this call ends

local function note(field, by) rises[field] = (rises[field] or 0) + by end

-- The error for the first key that holds what it must not, or nil. Scripts do not roll back: this comes first.
local function misfit(wanted)
  for key, kind in pairs(wanted) do
    local found = redis.call('TYPE', key)['ok']
    if found ~= kind and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. kind)
    end
  end
end

local function write_books(books)
  for field, by in pairs(rises) do
    if by ~= 0 and redis.call('HINCRBY', books, field, by) < 0 then redis.call('HSET', books, field, 0) end
  end
end

-- The producer's side is told that an admitted entry is finished.
local function unadmit(sources, source, admitted)
  note('admitted_bytes', -admitted)
  if redis.call('HINCRBY', sources, source, -1) <= 0 then redis.call('HDEL', sources, source) end
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

local function without_long_values(letter)
  local kept = {}
  for i = 1, #letter, 2 do
    if #tostring(letter[i + 1]) <= LONG then kept[#kept + 1], kept[#kept + 2] = letter[i], letter[i + 1] end
  end
  return kept
end

-- Adds a letter of these values and keeps the stream within `most` letters and `most_bytes`: the oldest go first, and
-- are counted. A letter that is over the bound all alone does without its picture, and is counted as well.
local function add_letter(dead, books, letter, most, most_bytes)
  local size, left = size_of(letter), redis.call('XLEN', dead)
  if size > most_bytes then
    letter = without_long_values(letter)
    size = size_of(letter)
    note('dead_dropped', 1)
  end
  if left == 0 then redis.call('HSET', books, 'dead_bytes', 0) end -- heals what XTRIM or XDEL by hand has left
  redis.call('XADD', dead, '*', unpack(letter))
  local bytes, evicted = redis.call('HINCRBY', books, 'dead_bytes', size), 0
  left = left + 1
  while left > 1 and (left > most or bytes > most_bytes) and evicted < MAX_EVICTED do
    local oldest = redis.call('XRANGE', dead, '-', '+', 'COUNT', 1)[1]
    redis.call('XDEL', dead, oldest[1])
    local freed = size_of(oldest[2])
    bytes, left, evicted = bytes - freed, left - 1, evicted + 1
    redis.call('HINCRBY', books, 'dead_bytes', -freed)
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
