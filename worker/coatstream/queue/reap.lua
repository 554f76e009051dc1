-- Removes consumers that have been silent for long and have nothing pending. Reply: how many.
--
-- KEYS  1 frames in
-- ARGV  1 consumer group  2 me  3 silent for so many ms
--
-- Harmless to one that is alive: with nothing pending there is nothing to lose, and its next read makes it again.

local consumers, removed = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]), 0 -- pcall: no group yet, so it has no consumers
for _, flat in ipairs(consumers) do
  local consumer = {}
  for i = 1, #flat, 2 do consumer[flat[i]] = flat[i + 1] end
  if consumer.name ~= ARGV[2] and consumer.pending == 0 and consumer.idle >= tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed = removed + 1
  end
end
return removed
