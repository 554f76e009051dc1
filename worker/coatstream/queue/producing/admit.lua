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
