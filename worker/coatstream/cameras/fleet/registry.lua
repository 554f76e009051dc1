-- The cameras that were added at run time, and which are paused. Runs behind fleet.lua.
--
-- KEYS  1 registry  2 paused  3 version
-- ARGV  1 cameras at most  2 bytes of one at most  3 the digest of what the caller knows
-- Reply {version, digest}: nothing is new. Otherwise also {camera, JSON, ...}, paused, {camera that is too large, ...}, how
--       many there are beyond the bound

local registry, paused, version = unpack(KEYS)
local most, longest, known = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local wrong = misfit({[registry] = 'hash', [paused] = 'set', [version] = 'string'})
if wrong then return wrong end

local names, idle = redis.call('HKEYS', registry), redis.call('SMEMBERS', paused)
table.sort(names)
table.sort(idle)
local found, large, parts = {}, {}, {table.concat(idle, '\n'), #names}
for at = 1, math.min(#names, most) do
  local name = names[at]
  if #name > longest or redis.call('HSTRLEN', registry, name) > longest then
    large[#large + 1] = string.sub(name, 1, 128)
  else
    found[#found + 1], found[#found + 2] = name, redis.call('HGET', registry, name)
  end
end
for _, list in ipairs({found, large}) do parts[#parts + 1] = table.concat(list, '\n') end
local digest, now = redis.sha1hex(table.concat(parts, '\n\n')), redis.call('GET', version) or ''
if digest == known then return {now, digest} end
return {now, digest, found, idle, large, math.max(0, #names - most)}
