-- The present tags and states of some cameras, all at one moment. Changes nothing.
--
-- KEYS  1 state per camera  2.. present tags, a key per camera
-- ARGV  the cameras, in the same order
-- Reply a state or '' per camera, then per camera a list of tag, JSON, tag, JSON ...

local reply = redis.call('HMGET', KEYS[1], unpack(ARGV))
for place = 1, #ARGV do reply[place] = reply[place] or '' end
for place = 2, #KEYS do reply[#reply + 1] = redis.call('HGETALL', KEYS[place]) end
return reply
