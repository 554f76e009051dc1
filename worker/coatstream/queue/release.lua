-- Hands entries of one consumer back, so that others take them at once and not when they have been idle for long.
--
-- KEYS  1 frames in  2 gate
-- ARGV  1 consumer group  2 whose  3 'new': no worker has begun them, so this delivery does not count; 'begun': it does;
--       'none': hand nothing back
--       4 '1' = and leave the group, if nothing is pending then
--       then ids; none = all that the consumer has
-- Reply  how many
--
-- They go to a consumer that stands for no worker, idle for a day. The gate is opened: there is something to take.
-- A consumer is deleted only when it has nothing: XGROUP DELCONSUMER would drop its entries from the group, and no worker
-- would ever be given them again.

local frames, gate, group, whose, begun, leave = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3] == 'begun', ARGV[4] == '1'
local NOBODY, LONG_IDLE, PAGE, PAGES = '_released', 86400000, 256, 64
local released = 0

local function release(id, deliveries)
  local count = begun and deliveries or math.max(0, deliveries - 1)
  redis.call('XCLAIM', frames, group, NOBODY, 0, id, 'IDLE', LONG_IDLE, 'RETRYCOUNT', count, 'JUSTID')
  released = released + 1
end

if ARGV[3] == 'none' then -- only leave
elseif #ARGV > 4 then
  for i = 5, #ARGV do
    local mine = redis.call('XPENDING', frames, group, ARGV[i], ARGV[i], 1, whose)
    if #mine > 0 then release(ARGV[i], mine[1][4]) end
  end
else
  for _ = 1, PAGES do
    local page = redis.call('XPENDING', frames, group, '-', '+', PAGE, whose)
    for _, entry in ipairs(page) do release(entry[1], entry[4]) end
    if #page < PAGE then break end
  end
end
if released > 0 then redis.call('DEL', gate) end
if leave and #redis.call('XPENDING', frames, group, '-', '+', 1, whose) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', frames, group, whose)
end
return released
