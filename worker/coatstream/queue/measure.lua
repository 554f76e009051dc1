-- How full a queue is, without sending a picture: XRANGE alone would, megabytes at every look.
--
-- KEYS  1 frames in  2 dead letters
-- ARGV  1 consumer group
-- Reply { seconds, microseconds, entries, id of the oldest or '', pending, dead letters }

local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1]) -- pcall: no group yet, so nothing is in work
local time = redis.call('TIME')
return {tonumber(time[1]), tonumber(time[2]), redis.call('XLEN', KEYS[1]), oldest and oldest[1] or '',
        pending.err and 0 or pending[1], redis.call('XLEN', KEYS[2])}
