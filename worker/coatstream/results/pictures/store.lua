-- Stores one picture of an event; the oldest go first where there is no room. Never over the bound.
--
-- KEYS  1 the picture  2 order: list of `<id> <bytes> <Unix ms>`, oldest first  3 bytes of all
--       4.. the oldest pictures, as the caller knows them
-- ARGV  1 JPEG  2 its bytes with all that a key takes  3 most bytes of all  4 longest age in ms  5 its id
--       6.. the ids of KEYS 4..
-- Reply {'stored' | 'there' | 'too_large', bytes of all, removed for room, removed for age, entries of the oldest ...},
--       or 'look' in front: the caller does not know the oldest; nothing was stored, and it calls again with these.
--
-- A picture ends by its time to live, also where no worker is left to remove it. Only its place in the list stays then.

local picture, order, size = KEYS[1], KEYS[2], KEYS[3]
local bytes, most, longest = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local OLDEST = 32 -- that the caller is told of

local wrong = misfit({[picture] = 'string', [order] = 'list', [size] = 'string'})
if wrong then return wrong end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local total = tonumber(redis.call('GET', size) or '') or 0
local known, crowded, aged = {}, 0, 0
for place = 4, #KEYS do known[ARGV[place + 2]] = KEYS[place] end

local function reply(word)
  return {word, total, crowded, aged, unpack(redis.call('LRANGE', order, 0, OLDEST - 1))}
end

if redis.call('EXISTS', picture) == 1 then return reply('there') end
if bytes > most then return reply('too_large') end

while true do
  local oldest = redis.call('LINDEX', order, 0)
  if not oldest then total = 0 break end
  local id, taken, stored = string.match(oldest, '^(%S+) (%d+) (%d+)$')
  local is_old = not id or now - stored >= longest
  if not is_old and total + bytes <= most then break end
  if not is_old then
    if not known[id] then
      redis.call('SET', size, total)
      return reply('look')
    end
    redis.call('DEL', known[id])
    crowded = crowded + 1
  else
    aged = aged + 1
  end
  redis.call('LPOP', order)
  total = math.max(0, total - (tonumber(taken) or 0))
end

redis.call('SET', picture, ARGV[1], 'PX', longest)
redis.call('RPUSH', order, ARGV[5] .. ' ' .. bytes .. ' ' .. now)
total = total + bytes
redis.call('SET', size, total)
return reply('stored')
