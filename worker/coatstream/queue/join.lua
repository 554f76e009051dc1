-- Makes the consumer group where it is missing, and opens the books where there are none. Reply: 1 = the group is new, 2 = so
-- is the stream, or it is another one than the books are of.
--
-- KEYS  1 frames in  2 books
-- ARGV  1 consumer group
--
-- From 0: settled entries are deleted, so nothing is done twice, and nothing that waits is passed over.
-- `base` makes the sum come out at this moment: added = base + in the stream + published + dropped + dead + trimmed.
-- It is made anew when the stream was deleted meanwhile: its own count of entries then begins again at 0.

local frames, books, group = KEYS[1], KEYS[2], ARGV[1]

for key, kind in pairs({[frames] = 'stream', [books] = 'hash'}) do
  local found = redis.call('TYPE', key)['ok']
  if found ~= kind and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. kind)
  end
end

local function has_group()
  if redis.call('EXISTS', frames) == 0 then return false end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', frames)) do
    for i = 1, #flat, 2 do
      if flat[i] == 'name' and flat[i + 1] == group then return true end
    end
  end
  return false
end

local function entries_added()
  local flat = redis.call('XINFO', 'STREAM', frames)
  for i = 1, #flat, 2 do
    if flat[i] == 'entries-added' then return flat[i + 1] end
  end
end

local function outcomes()
  local sum = 0
  for _, count in ipairs(redis.call('HMGET', books, 'published', 'dropped', 'dead', 'trimmed')) do
    sum = sum + (tonumber(count or '0') or 0)
  end
  return sum
end

redis.call('HDEL', books, '') -- takes no memory; after such a write a server at `maxmemory` lets the rest pass
local is_new = not has_group()
if is_new then redis.call('XGROUP', 'CREATE', frames, group, '0', 'MKSTREAM') end
local base = tonumber(redis.call('HGET', books, 'base') or '')
local due = entries_added() - redis.call('XLEN', frames) - outcomes()
local is_other = not base or due < base
if is_other then redis.pcall('HSET', books, 'base', due) end -- pcall: work goes on without books
return is_new and (is_other and 2 or 1) or 0
