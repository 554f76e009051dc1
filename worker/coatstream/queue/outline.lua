-- An entry without its picture, for one whose reply the server cuts off.
--
-- KEYS  1 frames in
-- ARGV  1 id
-- Reply { bytes of the picture, fields }, or nil where the entry is gone

local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then return nil end
local fields, left_out = carried(entry[2], 0)
return {left_out, fields}
