-- Reads dead letters without their pictures: those stay on the server, and only their sizes travel.
--
-- KEYS  1 dead letters
-- ARGV  1 from which id, '(' before it for after it  2 to which id  3 letters at most  4 longest value in full, bytes
-- Reply { id of the last letter in this range, { { id, { name, size, value or '' where it is longer, ... } }, ... } }
--       oldest first; {} where the range is empty

local dead, from, to, letters, longest = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local last = redis.call('XREVRANGE', dead, to, from, 'COUNT', 1)[1]
if not last then return {} end
local found = {}
while #found < letters do
  local entry = redis.call('XRANGE', dead, from, to, 'COUNT', 1)[1] -- one at a time: each may hold 16 MB
  if not entry then break end
  local fields = {}
  for i = 1, #entry[2], 2 do
    local name, value = entry[2][i], entry[2][i + 1]
    fields[#fields + 1] = string.sub(name, 1, 256)
    fields[#fields + 1] = #value
    fields[#fields + 1] = #value <= longest and value or ''
  end
  found[#found + 1] = {entry[1], fields}
  from = '(' .. entry[1]
end
return {last[1], found}
