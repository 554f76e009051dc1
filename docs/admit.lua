-- Written by docs/tables.py for docs/admission.md, which has its keys and arguments.

-- Goes in front of all scripts that write: the types that their keys must have.

-- The error for the first key of a wrong type, or nil. Scripts do not roll back, so they call this first.
local function misfit(wanted)
  for key, kind in pairs(wanted) do
    local found = redis.call('TYPE', key)['ok']
    if found ~= kind and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. kind)
    end
  end
end

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

-- Lets frames into the frames stream, or tells why not: each one once, and no more than there is room for.
-- Stands behind keys.lua and accounts.lua; docs/admit.lua has all three, for producers in other languages.
--
-- KEYS  1 frames in  2 books  3 admitted entries per source  4 the newcomer
--       from 5 on: last sequence, one key for each source of this call
-- ARGV  1 entries at most  2 their bytes at most  3 '1' = a refused frame is lost: count it  4 the newcomer's life in ms
--       then one block per frame:
--         which key has its sequence, source, sequence, life of the sequence in ms, bytes, length of the rest,
--         and its own fields: name value ...
-- Reply { one digit per frame: 1 = it is in, 2 = it was in already, 0 = no room, 3 = no room: the server is at `maxmemory`;
--         then the entry's id of each frame that is in now, then that of each frame that was in already: '' where another
--         frame of its source has come since }
--
-- Why it may be sent twice. A frame whose sequence is not above its source's last one has been here. For that to be
-- true, what comes after a refused frame of the same source is refused too: the frames that are in are the first ones.
-- What was in already gets its sequence's life renewed, and that is a write on purpose: a WAIT behind this call, perhaps
-- on a new connection, then waits for all that was written before as well.
-- What a sequence's key holds: the sequence, '.0', the milliseconds of its entry's id with 20 digits, the rest of that
-- id. As a number, as older producers read it, that is the sequence.
-- Why XADD comes first of all writes. At `maxmemory` a script's first write is refused, and later ones no more. So
-- nothing else has happened then. One call may go over `maxmemory` by its own bytes, which the caller bounds.
-- Fairness. In a queue that is half full each source has an equal share, by entries and by bytes; a frame stands for the
-- size of its source's others. A full queue has no place for a source that has nothing in it, and a source that floods it
-- takes the next one that becomes free. So that source is remembered for a while, and counted when shares are computed.

local frames, books, sources, newcomer = unpack(KEYS, 1, 4)
local max_length, max_bytes, counts, newcomer_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4]
local FIRST_SEQUENCE, FIRST_BLOCK, HEADER = 5, 5, 6

local wrong = misfit({[frames] = 'stream', [books] = 'hash', [sources] = 'hash', [newcomer] = 'string'})
if wrong then return wrong end

local last, last_id = {}, {} -- key -> sequence, and its entry's id; read before the first write, since a key that holds
for i = FIRST_SEQUENCE, #KEYS do -- something else is an error
  local value = redis.call('GET', KEYS[i]) or ''
  local sequence, ms, number = string.match(value, '^(%d+)%.0(' .. string.rep('%d', 20) .. ')(%d+)$')
  last[KEYS[i]] = tonumber(sequence or value) or -1
  if ms then last_id[KEYS[i]] = string.match(ms, '^0*(%d+)$') .. '-' .. number end
end

local length = redis.call('XLEN', frames)
local was_empty = length == 0 -- then the accounts are 0 too, whatever XTRIM or XDEL by hand has left in them
local bytes = was_empty and 0 or tonumber(redis.call('HGET', books, 'admitted_bytes') or '') or 0
local holders = was_empty and 0 or redis.call('HLEN', sources)
local guest = redis.call('GET', newcomer)
local held = {} -- source -> its unfinished entries

local function held_by(source)
  if not held[source] then
    held[source] = was_empty and 0 or tonumber(redis.call('HGET', sources, source) or '') or 0
  end
  return held[source]
end

-- How many share the queue: those that have something in it, this one, and the newcomer.
local function sharers(source)
  local count = holders
  if held_by(source) == 0 then count = count + 1 end
  if guest and guest ~= source and held_by(guest) == 0 then count = count + 1 end
  return count
end

local function has_room(source, size)
  if length >= max_length or bytes + size > max_bytes then return false end
  local own, count = held_by(source), sharers(source)
  if own == 0 or count == 1 then return true end
  if 2 * length >= max_length and own * count >= max_length then return false end
  return 2 * bytes < max_bytes or own * size * count < max_bytes
end

local admitted, refused, added_bytes, problem = 0, 0, 0, nil
local ids, earlier = {}, {} -- of the new entries; of those that were in already
local stored, renewed = {}, {} -- key -> { sequence, life }; key -> life
local risen = {} -- source -> entries added
local turned_away = {} -- key of a source whose frame was refused -> that digit
local new_guest = nil

local function refuse(key, digit)
  turned_away[key] = digit
  refused = refused + 1
  return digit
end

local function admit(key, source, sequence, life, size, first, final)
  if tonumber(sequence) <= last[key] then
    renewed[key] = life
    earlier[#earlier + 1] = tonumber(sequence) == last[key] and last_id[key] or ''
    return '2'
  end
  if turned_away[key] then return refuse(key, turned_away[key]) end
  if not has_room(source, size) then
    if held_by(source) == 0 then new_guest = new_guest or source end
    return refuse(key, '0')
  end
  local added = redis.pcall('XADD', frames, '*', 'admitted', size, 'sequence', sequence, unpack(ARGV, first, final))
  if type(added) == 'table' and added.err then
    if string.sub(added.err, 1, 3) == 'OOM' then return refuse(key, '3') end
    problem = added
    return nil
  end
  ids[#ids + 1] = added
  if held_by(source) == 0 then holders = holders + 1 end
  held[source] = held[source] + 1
  risen[source] = (risen[source] or 0) + 1
  length, bytes, added_bytes, admitted = length + 1, bytes + size, added_bytes + size, admitted + 1
  last[key], last_id[key], stored[key] = tonumber(sequence), added, {sequence, life}
  return '1'
end

local function fraction(id)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  return '.0' .. string.rep('0', 20 - #ms) .. ms .. number
end

local function write_accounts()
  if was_empty then
    redis.call('DEL', sources)
    redis.call('HSET', books, 'admitted_bytes', 0)
  end
  raise(books, 'admitted_bytes', added_bytes) -- no error whatever is in there: the frames are in, and must not come again
  for source, by in pairs(risen) do raise(sources, source, by) end
  for key, what in pairs(stored) do redis.call('SET', key, what[1] .. fraction(last_id[key]), 'PX', what[2]) end
end

local digits, i = {}, FIRST_BLOCK
while i <= #ARGV and not problem do
  local first, rest = i + HEADER, tonumber(ARGV[i + 5])
  digits[#digits + 1] = admit(KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4]),
    first, first + rest - 1)
  i = first + rest
end

if admitted > 0 then write_accounts() end
for key, life in pairs(renewed) do
  if not stored[key] then redis.call('PEXPIRE', key, life) end
end
-- pcall: where nothing came in, `maxmemory` may refuse these, and nothing is lost by that
if counts and refused > 0 then redis.pcall('HINCRBY', books, 'refused', refused) end
if new_guest then redis.pcall('SET', newcomer, new_guest, 'PX', newcomer_ms) end
for _, id in ipairs(earlier) do ids[#ids + 1] = id end
return problem or {table.concat(digits), unpack(ids)}
