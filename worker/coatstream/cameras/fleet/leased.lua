-- Which worker reads which camera now, for a person. Changes nothing. Runs behind fleet.lua.
--
-- KEYS  1 members  2 leases
-- Reply {camera, owner, fence, since in ms, standby or '', ...} of leases whose owner is alive

local members, leases = unpack(KEYS)

local wrong = misfit({[members] = 'hash', [leases] = 'hash'})
if wrong then return wrong end

local clock = redis.call('TIME')
local now, found = clock[1] * 1000 + math.floor(clock[2] / 1000), {}
local there = records(redis.call('HGETALL', members))
for camera, lease in pairs(records(redis.call('HGETALL', leases))) do
  local owner = type(lease.owner) == 'string' and there[lease.owner]
  if owner and type(owner.beat) == 'number' and type(owner.lease) == 'number' and owner.beat + owner.lease > now then
    for _, value in ipairs({camera, lease.owner, tostring(lease.fence), string.format('%.0f', tonumber(lease.since) or 0),
                            type(lease.heir) == 'string' and lease.heir or ''}) do
      found[#found + 1] = value
    end
  end
end
return found
