-- Who waits in a queue: the sources of its oldest entries, and the consumers. No picture leaves the server.
--
-- KEYS  1 frames in
-- ARGV  1 consumer group  2 entries to look at  3 bytes after which the look ends
-- Reply { entries looked at, { source, count, ... }, { consumer, pending, idle ms, ... } }

local frames, group, most, room = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local counts, order, seen, from = {}, {}, 0, '-'
while seen < most and room > 0 do
  local entry = redis.call('XRANGE', frames, from, '+', 'COUNT', 1)[1]
  if not entry then break end
  local source = 'queue'
  for i = 1, #entry[2], 2 do
    room = room - #entry[2][i + 1]
    if entry[2][i] == 'source' and entry[2][i + 1] ~= '' then source = string.sub(entry[2][i + 1], 1, 128) end
  end
  if not counts[source] then order[#order + 1] = source end
  counts[source] = (counts[source] or 0) + 1
  seen, from = seen + 1, '(' .. entry[1]
end
table.sort(order, function(one, other)
  if counts[one] ~= counts[other] then return counts[one] > counts[other] end
  return one < other
end)
local sources, consumers = {}, {}
for _, source in ipairs(order) do sources[#sources + 1], sources[#sources + 2] = source, counts[source] end

local found = redis.pcall('XINFO', 'CONSUMERS', frames, group) -- pcall: no group yet, so no consumers
for _, flat in ipairs(found.err and {} or found) do
  local one = {}
  for i = 1, #flat, 2 do one[flat[i]] = flat[i + 1] end
  for _, name in ipairs({'name', 'pending', 'idle'}) do consumers[#consumers + 1] = one[name] end
end
return {seen, sources, consumers}
