-- Renews the leases of one worker: their idle time starts again at 0. Reply: the entries that are not its own any more.
--
-- KEYS  1 frames in
-- ARGV  1 consumer group  2 me  then ids
--
-- JUSTID leaves the count of deliveries alone and sends no picture. Ownership is looked at first: XCLAIM would steal an
-- entry back from the worker that took it over.

local frames, group, me = KEYS[1], ARGV[1], ARGV[2]
local lost = {}
for i = 3, #ARGV do
  if #redis.call('XPENDING', frames, group, ARGV[i], ARGV[i], 1, me) > 0 then
    redis.call('XCLAIM', frames, group, me, 0, ARGV[i], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
