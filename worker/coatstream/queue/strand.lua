-- Finds stranded entries: they were delivered, and no consumer has them pending, so the group will never give them to
-- a worker again. Gives them back, so that the next worker takes them like new ones.
--
-- KEYS  1 frames in  2 gate  3 books
-- ARGV  1 consumer group  2 ms between two looks of all workers together  3 '1' = adopt, '0' = only count
--       4 the entry behind which counting begins, or ''
-- Reply { entries found, 1 = look again at once, where this look ended or '' }
--
-- Four ways lead here: XGROUP DELCONSUMER by hand drops what the consumer had pending, another tool acknowledges entries
-- that it did not delete, a group is made at `$` or a later id, or XGROUP SETID passes over what waits.
-- Settled entries are deleted in the step that acknowledges them, so what lies in the stream up to the group's position
-- is pending or stranded. Where this user may not delete, settled entries stay: `undeleted` in the books is the newest of
-- them (settle.lua), and nothing up to it is adopted, since it would get a second label.
-- Entries are fetched one by one, and for 8 MiB at most: no command lists ids without the pictures. The place where the
-- look ends is kept in the books for the next one, whichever worker makes it.

local frames, gate, books = KEYS[1], KEYS[2], KEYS[3]
local group, every, adopt = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local MOST, MOST_BYTES, LONG_IDLE, NOBODY = 256, 8 * 1024 * 1024, 86400000, '_released'

local wrong = misfit({[frames] = 'stream', [books] = 'hash', [gate] = 'string'})
if wrong then return wrong end

local function position()
  if redis.call('EXISTS', frames) == 0 then return nil end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', frames)) do
    local found = {}
    for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
    if found.name == group then return found['last-delivered-id'] end
  end
end

-- Ids are two numbers of up to 20 digits, more than Lua's can hold: compared as text of one length.
local function padded(id)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  if not ms then return nil end
  return string.rep('0', 20 - #ms) .. ms .. string.rep('0', 20 - #number) .. number
end

local last = position()
if not last or last == '0-0' then return {0, 0, ''} end
-- No stream takes the id 0-0, so this deletes nothing; 0-1 may be a frame.
if adopt and type(redis.pcall('XDEL', frames, '0-0')) == 'table' then return {0, 0, ''} end -- settled entries stay

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local marks = redis.call('HMGET', books, 'strand_at', 'strand_from', 'undeleted')
local looked = tonumber(marks[1] or '')
if adopt and looked and now >= looked and now - looked < every then return {0, 0, ''} end -- a clock that went back counts not

local begin = ARGV[4]
if adopt then begin = marks[2] and padded(marks[2]) and marks[2] or '' end
local from = begin ~= '' and '(' .. begin or '-'
local undeleted, found, bytes = marks[3] and padded(marks[3]) or '', {}, 0
local seen = nil
for _ = 1, MOST do
  local entry = redis.call('XRANGE', frames, from, last, 'COUNT', 1)[1]
  if not entry then
    seen = nil
    break
  end
  seen = entry[1]
  if padded(seen) > undeleted and #redis.call('XPENDING', frames, group, seen, seen, 1) == 0 then found[#found + 1] = seen end
  for _, value in ipairs(entry[2]) do bytes = bytes + #value end
  if bytes >= MOST_BYTES then break end
  from = '(' .. seen
end
if not adopt then return {#found, seen and 1 or 0, seen or ''} end

-- Workers of earlier releases settle where they may not delete, and write no `undeleted`. Then the books have more
-- outcomes than entries are gone, and some of what was found has its label.
local function more_outcomes_than_gone()
  local info, sum = {}, redis.call('XLEN', frames)
  local flat = redis.call('XINFO', 'STREAM', frames)
  for i = 1, #flat, 2 do info[flat[i]] = flat[i + 1] end
  for _, count in ipairs(redis.call('HMGET', books, 'base', 'published', 'dropped', 'dead', 'trimmed')) do
    sum = sum + (tonumber(count or '0') or 0)
  end
  return sum > info['entries-added']
end
if #found > 0 and undeleted == '' and more_outcomes_than_gone() then found = {} end

-- A position beyond the newest id, set by hand, passes over every entry to come: from here on they are new again.
local function newest_id()
  local flat = redis.call('XINFO', 'STREAM', frames)
  for i = 1, #flat, 2 do
    if flat[i] == 'last-generated-id' then return flat[i + 1] end
  end
end
local newest = newest_id()
if padded(last) > padded(newest) then
  redis.pcall('XGROUP', 'SETID', frames, group, newest) -- pcall: without this right each entry is found by a look
end

for _, id in ipairs(found) do
  redis.call('XCLAIM', frames, group, NOBODY, 0, id, 'IDLE', LONG_IDLE, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
end
if #found > 0 then
  redis.call('DEL', gate)
  redis.pcall('HINCRBY', books, 'stranded', #found) -- pcall: at `maxmemory` work goes on without books
end
-- What was found is seldom alone, so the next look goes on at once.
redis.pcall('HSET', books, 'strand_at', #found > 0 and seen and 0 or now, 'strand_from', seen or '')
return {#found, #found > 0 and seen and 1 or 0, seen or ''}
