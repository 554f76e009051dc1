-- One worker's beat: it lives, it can read these cameras; which may it read from now on? Runs behind fleet.lua.
--
-- KEYS  1 members  2 leases  3 fences  4 registry  5 paused  6 version
-- ARGV  1 me  2 how long my right lasts from now, in ms  3 'stay'; 'leaving': keep it until another worker is ready;
--       'gone': drop everything
--       4 frames a second that I accept, or '' = no bound  5 digest of my catalogue
--       6 the catalogue: [[camera, digest of its settings, priority, frames a second, cold, from Redis], ...]; empty
--         where the server should have it. An address may follow, for people.
--       7 {"warm": cameras whose pictures I get, "ended": ..., "predecessors": workers that are certainly dead,
--         "unshared": [[camera that only I read, its address], ...]}
--       8 the time in ms, for tests of this script; '' = the server's own
-- Reply {'catalogue'}: send it too. Else {'done', version before, version now, held (camera, fence, why, ...), cameras to
--       open, ms until something may happen, members, how many of mine have a standby, ended, refused for want of room}
--
-- A lease has no end of its own: it holds while its owner is a member, so that one write renews all of them.
-- Make before break. A camera whose owner is leaving, silent for half a lease, or has too many gets a standby, which opens
-- it and publishes nothing; when its pictures come in ("warm") the lease moves. The lease of a silent owner moves only when
-- the owner is no member any more. Where the owner gets no pictures itself nothing can be missed, and it moves at once.
-- A cold camera (a file, a local device) cannot be opened twice or would begin anew: it moves when it is free.
-- Fair shares: cameras go to the worker that has the fewest, and move from one that has two more than another. Every worker
-- would compute the same, and the first one that calls does.
-- Fences rise even where Redis has lost its data: they are the time in microseconds.
-- In the stored records a standby is called heir, as all releases write it.

local members_key, leases_key, fences_key, registry_key, paused_key, version_key = unpack(KEYS)
local me, lease_ms, mode, room, digest, catalogue = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local report = cjson.decode(ARGV[7])
local CATALOGUE = ':' -- fields of `members` that begin so are no worker's
local AT_ONCE = 16 -- cameras for each member that are moved for fairness at the same time: two workers read each of them then
local FORGIVEN = 30 -- leases after which a standby that never got warm may try again
local QUIET = 4 -- at least so many beats of each member come within a lease (five), unless the server is away
local LONG_SILENCE = 6 -- leases
local LARGEST = 9e15 -- what a number may be and still be exact
local LONGEST = 3600000 -- ms of a member's lease

local wrong = misfit({[members_key] = 'hash', [leases_key] = 'hash', [fences_key] = 'hash', [registry_key] = 'hash',
                      [paused_key] = 'set', [version_key] = 'string'})
if wrong then return wrong end

local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
if ARGV[8] ~= '' then now_us = tonumber(ARGV[8]) * 1000 end
local now = math.floor(now_us / 1000)
local before = redis.call('GET', version_key) or ''

-- ---- which members live

local stored = redis.call('HGETALL', members_key)
local members, catalogues, useless = {}, {}, {}

-- Neither NaN nor infinite: a member that never grows old would keep its cameras for ever.
local function is_number(value, most) return type(value) == 'number' and value >= 0 and value <= (most or LARGEST) end

local function are_numbers(list)
  for _, value in pairs(list) do
    if not is_number(value) then return false end
  end
  return true
end

local function is_member(record)
  return is_number(record.beat) and is_number(record.lease, LONGEST) and type(record.catalogue) == 'string'
    and type(record.warm) == 'table' and (record.ended == nil or type(record.ended) == 'table')
    and (record.room == nil or is_number(record.room)) and (record.heard == nil or is_number(record.heard))
end

local function is_lease(record)
  return type(record.ended) == 'string' or type(record.owner) == 'string'
    and type(record.fence) == 'string' and #record.fence <= 16 and string.match(record.fence, '^%d+$')
    and (record.why == nil or type(record.why) == 'string')
    and (record.heir == nil or type(record.heir) == 'string' and is_number(record.heir_at))
    and (record.passed == nil or type(record.passed) == 'table' and are_numbers(record.passed))
end

local function is_entry(entry)
  return type(entry) == 'table' and type(entry[1]) == 'string' and type(entry[2]) == 'string'
    and is_number(entry[3]) and is_number(entry[4])
end

for i = 1, #stored, 2 do
  if string.sub(stored[i], 1, 1) == CATALOGUE then catalogues[string.sub(stored[i], 2)] = stored[i + 1] end
end
if mode ~= 'gone' and catalogue == '' and not catalogues[digest] then return {'catalogue'} end

redis.call('HDEL', leases_key, '') -- a first write that takes no memory: the rest then works at `maxmemory` too

for name, record in pairs(records(stored)) do
  if string.sub(name, 1, 1) == CATALOGUE then -- none
  elseif is_member(record) then
    if record.beat > now then -- the server's clock was put back
      record.beat = now
      redis.call('HSET', members_key, name, cjson.encode(record))
    end
    members[name] = record
  else
    useless[#useless + 1] = name
  end
end

local was_there = members[me]

-- Where no member has been heard, the server was away, or its clock jumped: the others will be back like this one. So the
-- newest beat counts as a quarter of a lease old, and the older ones keep their distance from it. Who joins after a long
-- silence finds a fleet that crashed: then each member's age is what it looks like.
local newest, shortest = 0, lease_ms
for _, record in pairs(members) do
  newest, shortest = math.max(newest, record.beat), math.min(shortest, record.lease)
end
local missed = math.floor(now - newest - shortest / QUIET)
if newest > 0 and missed > 0 and (was_there or missed < LONG_SILENCE * shortest) then
  for name, record in pairs(members) do
    record.heard = record.heard or record.beat -- when it last came: a silent owner speaks until its right ends
    record.beat = record.beat + missed
    redis.call('HSET', members_key, name, cjson.encode(record))
  end
end
local gone = {} -- members that are gone: true = by their own report
for name, record in pairs(members) do
  if name ~= me and record.beat + record.lease <= now then gone[name] = false end
end
for _, name in ipairs(report.predecessors) do
  if name ~= me then gone[name] = false end
end
for name in pairs(gone) do members[name] = nil end
local is_first = mode ~= 'gone' and not was_there and next(members) == nil and #report.predecessors == 0

if mode == 'gone' then
  members[me] = nil
  gone[me] = true
else
  if catalogue ~= '' then
    catalogues[digest] = catalogue
    redis.call('HSET', members_key, CATALOGUE .. digest, catalogue)
  end
  members[me] = {beat = now, lease = lease_ms, leaving = mode == 'leaving' or nil, room = room, catalogue = digest,
                 warm = report.warm, ended = report.ended, unshared = report.unshared}
  redis.call('HSET', members_key, me, cjson.encode(members[me]))
end
for name in pairs(gone) do redis.call('HDEL', members_key, name) end
for _, name in ipairs(useless) do redis.call('HDEL', members_key, name) end

-- ---- which cameras there are, and which member can read them

local parsed, used = {}, {}

local function known_by(member)
  local key = member.catalogue
  used[key] = true
  if not parsed[key] then
    parsed[key] = {}
    local well, entries = pcall(cjson.decode, catalogues[key] or '[]')
    for _, entry in ipairs(well and type(entries) == 'table' and entries or {}) do
      if is_entry(entry) then
        parsed[key][entry[1]] = {digest = entry[2], priority = entry[3], rate = entry[4], cold = entry[5] == 1,
                                 added = entry[6] == 1}
      end
    end
  end
  return parsed[key]
end

local registered, paused = set_of(redis.call('HKEYS', registry_key)), set_of(redis.call('SMEMBERS', paused_key))
local leases = records(redis.call('HGETALL', leases_key))
for camera, lease in pairs(leases) do
  if not is_lease(lease) then leases[camera] = nil end -- overwritten when a member gets the camera
end
local names, takers = {}, {} -- members by name; those that may be given more
for name, member in pairs(members) do
  member.known, member.warm, member.ended = known_by(member), set_of(member.warm), set_of(member.ended or {})
  member.suspect = name ~= me and member.beat + member.lease / 2 <= now
  member.silent = name ~= me and math.min(member.heard or member.beat, member.beat) + member.lease / 2 <= now
  names[#names + 1] = name
end
table.sort(names)
for _, name in ipairs(names) do
  local member = members[name]
  if not member.leaving and not member.suspect then
    takers[#takers + 1] = name
    member.takes, member.count, member.rate = true, 0, 0
  end
end
for key in pairs(catalogues) do
  if not used[key] then redis.call('HDEL', members_key, CATALOGUE .. key) end
end

local cameras, order = {}, {} -- name -> what is known of it; by priority, then name

local function can_read(name, camera)
  local member = members[name]
  local entry = member and member.known[camera]
  if not entry or paused[camera] or (entry.added and not registered[camera]) then return false end
  if member.ended[camera] then return false end -- it has read it, whatever digest others know it by
  local lease = leases[camera]
  return not (lease and lease.ended == entry.digest)
end

for _, name in ipairs(names) do
  for camera, entry in pairs(members[name].known) do
    if not cameras[camera] then
      cameras[camera] = {name = camera, priority = entry.priority, cold = entry.cold}
      order[#order + 1] = cameras[camera]
    end
    cameras[camera].priority = math.max(cameras[camera].priority, entry.priority)
  end
end

local function comes_first(one, other)
  if one.priority ~= other.priority then return one.priority > other.priority end
  return one.name < other.name
end
table.sort(order, comes_first)

-- ---- what changes

local touched, changed = {}, false

local function write(camera, lease)
  leases[camera], touched[camera], changed = lease, true, true
end

local function grant(camera, owner, why)
  local last = tonumber(redis.call('HGET', fences_key, camera) or '') or 0
  if not (last < LARGEST) then last = 0 end
  local fence = string.format('%.0f', math.max(now_us, last + 1))
  redis.call('HSET', fences_key, camera, fence)
  write(camera, {owner = owner, fence = fence, since = now, why = why})
end

local predecessors = set_of(report.predecessors)
for camera, lease in pairs(leases) do
  if lease.ended then
    if is_first then write(camera, nil) end
  elseif predecessors[lease.owner] and mode ~= 'gone' and can_read(me, camera) then
    grant(camera, me, 'taken_over')
  end
end
for _, camera in ipairs(mode == 'gone' and {} or report.ended) do
  local lease, entry = leases[camera], members[me].known[camera]
  if entry and (not lease or lease.owner == me) then write(camera, {ended = entry.digest}) end
end

-- ---- which member shall have which camera

local function owner_of(camera) -- a live member that can read it, or nil
  local lease = leases[camera.name]
  return lease and lease.owner and can_read(lease.owner, camera.name) and lease.owner or nil
end

local function has_room(member, camera)
  return not member.room or member.rate + member.known[camera.name].rate <= member.room
end

local function may_take(name, camera)
  if not members[name].takes or not can_read(name, camera.name) then return false end
  if camera.owner and camera.owner ~= name then
    local passed = (leases[camera.name].passed or {})[name]
    return not passed or passed + FORGIVEN * members[name].lease <= now
  end
  return true
end

local function claim(camera, name)
  if camera.claim then
    local old = members[camera.claim]
    old.count, old.rate = old.count - 1, old.rate - old.known[camera.name].rate
  end
  camera.claim = name
  if name then
    local own = members[name]
    own.count, own.rate = own.count + 1, own.rate + own.known[camera.name].rate
  end
end

-- A standby that is still of use. One that never got warm is passed over from now on.
local function standby_of(camera)
  local lease = leases[camera.name]
  local standby = lease and lease.heir
  if not standby or not members[standby] then return nil end
  if camera.owner and not members[standby].warm[camera.name] and lease.heir_at + members[standby].lease <= now then
    lease.passed = lease.passed or {}
    lease.passed[standby] = now
    lease.heir = nil
    write(camera.name, lease)
    return nil
  end
  return may_take(standby, camera) and standby or nil
end

for _, camera in ipairs(order) do
  camera.owner = owner_of(camera)
  local lease, standby = leases[camera.name], standby_of(camera)
  local stays = camera.owner and members[camera.owner].takes
  if camera.owner and camera.cold then
    if stays then claim(camera, camera.owner) else camera.stuck = true end
  elseif stays and not (standby and lease.heir_why == 'balance') then
    claim(camera, camera.owner)
  elseif standby then
    claim(camera, standby)
  end
end

for _, camera in ipairs(order) do -- cameras that were to be moved and need not be any more
  local stays = camera.claim and camera.owner and camera.claim ~= camera.owner and members[camera.owner].takes
  if stays and members[camera.claim].count > members[camera.owner].count then claim(camera, camera.owner) end
end

for _, name in ipairs(takers) do
  local member = members[name]
  if member.room and member.rate > member.room then
    local taken = 0
    for _, camera in ipairs(order) do
      if camera.claim == name then
        local rate = member.known[camera.name].rate
        if taken + rate > member.room then claim(camera, nil) else taken = taken + rate end
      end
    end
  end
end

local function least_loaded(camera)
  local best
  for _, name in ipairs(takers) do
    if may_take(name, camera) and has_room(members[name], camera) and (not best or members[name].count < members[best].count)
    then best = name end
  end
  return best
end

-- A member that has room for it once it gives up cameras of lower priority, which then look for another place.
local function make_room(camera)
  for _, name in ipairs(takers) do
    local member = members[name]
    if may_take(name, camera) and member.room then
      local free, lower = member.room - member.rate, {}
      local rate = member.known[camera.name].rate
      for at = #order, 1, -1 do
        local other = order[at]
        if free >= rate or other.priority >= camera.priority then break end
        if other.claim == name then
          lower[#lower + 1] = other
          free = free + member.known[other.name].rate
        end
      end
      if free >= rate then
        for _, other in ipairs(lower) do claim(other, nil) end
        return name
      end
    end
  end
end

for _, camera in ipairs(order) do -- a camera that loses its place here comes later in the order, so it is looked at again
  if not camera.claim and not camera.stuck then claim(camera, least_loaded(camera) or make_room(camera)) end
end

-- How much would be lost by moving a camera from one member to another; less is better.
local function harm(camera, from, to)
  if camera.owner == to then return 0 end
  if camera.owner ~= from then return members[from].warm[camera.name] and 2 or 1 end
  return members[from].warm[camera.name] and 4 or 3
end

local function move_one(from, to)
  local best, least
  for at = #order, 1, -1 do
    local camera = order[at]
    if camera.claim == from and not (camera.cold and camera.owner) and may_take(to, camera) and has_room(members[to], camera)
    then
      local cost = harm(camera, from, to)
      if not best or cost < least then best, least = camera, cost end
    end
  end
  if best then claim(best, to) end
  return best ~= nil
end

local function even_out()
  table.sort(takers, function(one, other)
    if members[one].count ~= members[other].count then return members[one].count > members[other].count end
    return one < other
  end)
  for high = 1, #takers do
    for low = #takers, high + 1, -1 do
      if members[takers[high]].count - members[takers[low]].count < 2 then break end
      if move_one(takers[high], takers[low]) then return true end
    end
  end
  return false
end

local moving = 0
for _, camera in ipairs(order) do
  if camera.claim and camera.owner and camera.claim ~= camera.owner and members[camera.owner].takes then moving = moving + 1 end
end
while moving < AT_ONCE * #takers and even_out() do moving = moving + 1 end

-- ---- make it so

local function pass_on(camera, lease)
  local owner, standby = members[camera.owner], members[camera.claim]
  if lease.heir ~= camera.claim then
    lease.heir, lease.heir_at = camera.claim, now
    lease.heir_why = owner.takes and 'balance' or 'ends'
    write(camera.name, lease)
  end
  if camera.cold or not owner.silent and (standby.warm[camera.name] or not owner.warm[camera.name]) then
    grant(camera.name, camera.claim, 'handed_over')
  end
end

local function settle(camera)
  local lease = leases[camera.name]
  if lease and lease.ended then
    if camera.claim then grant(camera.name, camera.claim, 'granted') end -- its settings are new
  elseif not camera.owner then
    local why = lease and (gone[lease.owner] and 'handed_over' or gone[lease.owner] == false and 'taken_over') or 'granted'
    if camera.claim then grant(camera.name, camera.claim, why) elseif lease then write(camera.name, nil) end
  elseif camera.claim and camera.claim ~= camera.owner then
    pass_on(camera, lease)
  elseif not camera.claim and members[camera.owner].takes then
    write(camera.name, nil)
  elseif lease.heir then
    lease.heir = nil
    write(camera.name, lease)
  end
end

for _, camera in ipairs(order) do settle(camera) end
for camera, lease in pairs(leases) do
  if not cameras[camera] and not lease.ended then write(camera, nil) end
end
for camera in pairs(touched) do
  if leases[camera] then
    redis.call('HSET', leases_key, camera, cjson.encode(leases[camera]))
  else
    redis.call('HDEL', leases_key, camera)
  end
end
if changed then bump(version_key) end

-- ---- what this means for the caller

local held, open, over, refused, standbys, wake = {}, {}, {}, {}, 0, lease_ms
for _, camera in ipairs(order) do
  local lease, mine = leases[camera.name], mode ~= 'gone' and members[me].known[camera.name]
  if lease and lease.owner == me then
    held[#held + 1], held[#held + 2], held[#held + 3] = camera.name, lease.fence, lease.why or ''
    if lease.heir then standbys = standbys + 1 end
  elseif lease and lease.heir == me then
    open[#open + 1] = camera.name
  end
  local standby = lease and lease.heir and members[lease.heir]
  if standby and not standby.warm[camera.name] then wake = math.min(wake, lease.heir_at + standby.lease - now) end
  if mine and (members[me].ended[camera.name] or lease and lease.ended == mine.digest) then over[#over + 1] = camera.name end
  if mine and not lease and #takers > 0 and can_read(me, camera.name) then refused[#refused + 1] = camera.name end
end
for _, name in ipairs(names) do
  local member = members[name]
  if name ~= me then
    wake = math.min(wake, member.beat + (member.suspect and member.lease or math.ceil(member.lease / 2)) - now)
  end
end
return {'done', before, redis.call('GET', version_key) or '', held, open, math.max(0, wake), #names, standbys, over, refused}
