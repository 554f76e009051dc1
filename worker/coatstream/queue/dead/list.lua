-- Reads dead letters without their pictures: those stay on the server, and only their sizes travel.
--
-- KEYS  1 dead letters
-- ARGV  1 from which id, '(' before it for after it  2 to which id  3 letters at most  4 longest value in full, bytes
--       5 bytes of such values of one letter, at most: strangers may write thousands of them
-- Reply { id of the last letter in this range, { { id, { name, size, value or '' where it is left out, ... } }, ... } }
--       oldest first; {} where the range is empty
--
-- The last six pairs hold why the frame died, and are never left out for want of room.

local dead, from, to = KEYS[1], ARGV[1], ARGV[2]
local letters, longest, room = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local APPENDED, LONGEST_NAME = 2 * 6, 256

local function described(values)
  local fields, left = {}, room
  for i = 1, #values, 2 do
    local name, value = values[i], values[i + 1]
    local whole = #value <= longest and (#value <= left or i > #values - APPENDED)
    if whole then left = left - #value end
    fields[#fields + 1] = string.sub(name, 1, LONGEST_NAME)
    fields[#fields + 1] = #value
    fields[#fields + 1] = whole and value or ''
  end
  return fields
end

local last = redis.call('XREVRANGE', dead, to, from, 'COUNT', 1)[1]
if not last then return {} end
local found = {}
while #found < letters do
  local entry = redis.call('XRANGE', dead, from, to, 'COUNT', 1)[1] -- one at a time: each may hold 16 MB
  if not entry then break end
  found[#found + 1] = {entry[1], described(entry[2])}
  from = '(' .. entry[1]
end
return {last[1], found}
