-- Which ids are dead letters of one stream; no letter is sent.
--
-- KEYS  1 dead letters
-- ARGV  ids
-- Reply one digit per id: 1 = it is there, 0 = it is not

local found = {}
for i, id in ipairs(ARGV) do found[i] = #redis.call('XRANGE', KEYS[1], id, id) end
return table.concat(found)
