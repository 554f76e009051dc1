-- Notes when present tags were seen last, and keeps tags and states alive: they expire when no worker does this any more.
--
-- KEYS  1 newest fence per camera  2 state per camera  3.. present tags, a key per camera
-- ARGV  1 ms that tags and states live from now on  then per tag: place of its key in KEYS, camera, fence, tag, seen at
-- Reply: tags that were written
--
-- A tag's JSON is patched as text: Lua's JSON would round Unix seconds. pcall: earlier releases asked for fewer rights.

local fences, states, life = KEYS[1], KEYS[2], ARGV[1]
local written = 0
for place = 2, #KEYS do redis.pcall('PEXPIRE', KEYS[place], life) end
for i = 2, #ARGV, 5 do
  local key, camera, fence, tag, seen = KEYS[tonumber(ARGV[i])], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4]
  local newest = fence ~= 0 and tonumber(redis.pcall('HGET', fences, camera) or '') or 0
  local text = newest <= fence and redis.pcall('HGET', key, tag)
  if type(text) == 'string' and string.sub(text, -1) == '}' then
    text = string.gsub(text, ',"seen_at":[%d.]+', '')
    local done = redis.pcall('HSET', key, tag, string.sub(text, 1, -2) .. ',"seen_at":' .. seen .. '}')
    if done == 0 then written = written + 1 end
  end
end
return written
