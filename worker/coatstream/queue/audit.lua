-- Reads the account of one queue: entries ever added, what lies there, what became of the rest. Changes nothing.
--
-- KEYS  1 frames in  2 dead letters  3 books
-- ARGV  1 consumer group  then the wanted fields of the books
-- Reply { entries ever added, entries, pending, dead letters, { value or nil per field }, newest id }
--
-- One script, so that all of it is of one moment, and since XINFO's reply quotes the first entry and the last: their
-- pictures stay here.

local frames, dead, books, group = KEYS[1], KEYS[2], KEYS[3], ARGV[1]

local function facts()
  local found = {['entries-added'] = 0, ['last-generated-id'] = '0-0'}
  if redis.call('EXISTS', frames) == 0 then return found end
  local flat = redis.call('XINFO', 'STREAM', frames)
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local stream = facts()

local pending = redis.pcall('XPENDING', frames, group) -- pcall: no group yet, so nothing is in work
return {stream['entries-added'], redis.call('XLEN', frames), pending.err and 0 or pending[1], redis.call('XLEN', dead),
        redis.call('HMGET', books, unpack(ARGV, 2)), stream['last-generated-id']}
