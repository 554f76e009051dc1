-- Reads new entries one by one until they hold enough bytes: XREADGROUP alone knows no bound but their number, and 16
-- entries of 60 MB would be one reply.
--
-- KEYS  1 frames in
-- ARGV  1 consumer group  2 me  3 entries at most  4 bytes after which no further one is read  5 longest picture
-- Reply { { id, bytes of the picture that is left out, fields }, ... }

local frames, group, me = KEYS[1], ARGV[1], ARGV[2]
local most, room, longest = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local found = {}
while #found < most and room > 0 do
  local reply = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', 1, 'STREAMS', frames, '>')
  if not reply then break end
  local entry = reply[1][2][1]
  local fields, left_out, size = carried(entry[2], longest)
  found[#found + 1] = {entry[1], left_out, fields}
  room = room - size
end
return found
