-- Adds a camera, removes, pauses or resumes it, and makes every worker read the registry. Runs behind fleet.lua.
--
-- KEYS  1 registry  2 paused  3 version  4 states
-- ARGV  1 'add', 'replace', 'remove', 'pause' or 'resume'  2 camera  3 its JSON  4 cameras at most
-- Reply 1 = done; 0 = nothing to change, or no such camera; 2 = there is one of this name, or no room for one more
--
-- A removed camera is forgotten, with its pause and its last state. Its fence stays: it refuses late workers.

local registry, paused, version, states = unpack(KEYS)
local what, camera, json, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

local wrong = misfit({[registry] = 'hash', [paused] = 'set', [version] = 'string', [states] = 'hash'})
if wrong then return wrong end

local function add()
  local is_there = redis.call('HEXISTS', registry, camera) == 1
  if is_there and what == 'add' then return 2 end
  if not is_there and redis.call('HLEN', registry) >= most then return 2 end
  redis.call('HSET', registry, camera, json)
  return 1
end

local function remove()
  local removed = redis.call('HDEL', registry, camera)
  if removed == 1 then
    redis.call('SREM', paused, camera)
    redis.call('HDEL', states, camera)
  end
  return removed
end

local done
if what == 'add' or what == 'replace' then
  done = add()
elseif what == 'remove' then
  done = remove()
elseif what == 'pause' then
  done = redis.call('SADD', paused, camera)
else
  done = redis.call('SREM', paused, camera)
end
if done == 1 then bump(version) end
return done
