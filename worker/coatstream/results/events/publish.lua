-- Publishes what happened to cameras, each event once, and keeps what clients read later: the present tags and states.
--
-- KEYS  1 events out  2 newest fence per camera  3 state per camera  4.. present tags of one camera each
-- ARGV  1 events kept  2 channel prefix  3 id of the caller's newest entry, or ''  4 id after which an earlier try of this
--       call has added entries, if it has
--       then one block per event:
--         kind camera fence id json  <number of flat values> field value ...  and by kind
--         s  a tag started  key tag value  (key: place in KEYS; value: the JSON of the present tag)
--         e  a tag ended    key tag started_at
--         t  a state        value, or '': the camera was removed
--         o  other
--       A capital letter (S, T) writes the tag or the state again for an event that was published long ago. id: the event's
--       entry, where the caller knows it: the event is published again only if the stream has forgotten that entry.
-- Reply { id for the next call's ARGV 4; then per event: an entry's id: it is in the stream, now or since an earlier try |
--         'same' and JSON: the tag was there already, like this | 'absent': it was not there to end | 'fenced': another
--         worker has the camera's lease }, or {'lost'}: the stream has forgotten the caller's newest entry; nothing was done.
--
-- Why a call may be sent twice. No two documents are equal (camera, moment, worker), so one that is in the stream already
-- is not added again; only entries after ARGV 4 need to be looked at. A tag that is there does not start, one that is not
-- there does not end, and an end does not touch a tag that started later.
-- Why 'lost'. A server that was killed, or a replica that took over, may have forgotten its last second. Then the caller
-- first publishes again what was in it.

local events, fences, states = KEYS[1], KEYS[2], KEYS[3]
local kept, prefix, newest, floor = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local FIRST_BLOCK = 5
local MOST_LOOKED_AT = 5000

local wanted = {[events] = 'stream', [fences] = 'hash', [states] = 'hash'}
for place = 4, #KEYS do wanted[KEYS[place]] = 'hash' end
local wrong = misfit(wanted) or (#ARGV >= FIRST_BLOCK and bars_adding(events))
if wrong then return wrong end

local function is_before(id, other)
  local ms, number = string.match(id, '(%d+)-(%d+)')
  local other_ms, other_number = string.match(other, '(%d+)-(%d+)')
  if ms ~= other_ms then return tonumber(ms) < tonumber(other_ms) end
  return tonumber(number) < tonumber(other_number)
end

-- Whether the stream does not know an entry to which it once gave this id. What was trimmed lies before the oldest entry
-- that is left; what was deleted by hand is remembered.
local function has_forgotten(id)
  if redis.call('XRANGE', events, id, id)[1] then return false end
  if redis.call('EXISTS', events) == 0 then return true end
  local reply, info = redis.pcall('XINFO', 'STREAM', events), {}
  if reply.err then return false end -- no right to ask
  for i = 1, #reply, 2 do info[reply[i]] = reply[i + 1] end
  if is_before(info['last-generated-id'], id) or info['entries-added'] == info['length'] then return true end
  local oldest = redis.call('XRANGE', events, '-', '+', 'COUNT', 1)[1]
  return oldest and is_before(oldest[1], id) and is_before(info['max-deleted-entry-id'], id)
end

if newest ~= '' and has_forgotten(newest) then return {'lost'} end

local published = {} -- JSON -> id, of the entries since the last call
if #ARGV >= FIRST_BLOCK then
  for _, entry in ipairs(redis.call('XREVRANGE', events, '+', '(' .. floor, 'COUNT', MOST_LOOKED_AT)) do
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'json' then published[entry[2][i + 1]] = entry[1] end
    end
  end
end

local function is_fenced(camera, fence)
  if fence == '0' then return false end
  local granted = tonumber(redis.call('HGET', fences, camera) or '') or 0
  if granted < tonumber(fence) then redis.pcall('HSET', fences, camera, fence) end -- forgotten, as settle.lua says
  return granted > tonumber(fence)
end

local function started_at(json)
  return tonumber(string.match(json, '"started_at":([%d.eE+-]+)') or '')
end

-- What each kind does to present tags and states; returns why there is nothing to publish, if so.
local effect = {}

function effect.s(camera, key, tag, value)
  if redis.call('HSETNX', KEYS[tonumber(key)], tag, value) == 1 then return nil end
  return 'same' .. redis.call('HGET', KEYS[tonumber(key)], tag)
end

function effect.e(camera, key, tag, start)
  local present = redis.call('HGET', KEYS[tonumber(key)], tag)
  if not present or (started_at(present) or 0) > tonumber(start) then return 'absent' end
  redis.call('HDEL', KEYS[tonumber(key)], tag)
end

function effect.t(camera, value)
  if value == '' then redis.call('HDEL', states, camera) else redis.call('HSET', states, camera, value) end
end

function effect.o() end

-- pcall: a user without the right to a channel still gets the stream.
local function publish(camera, json, fields)
  fields[#fields + 1], fields[#fields + 2] = 'json', json
  local id = redis.call('XADD', events, 'MAXLEN', '~', kept, '*', unpack(fields))
  redis.pcall('PUBLISH', prefix .. camera, json)
  return id
end

local at = FIRST_BLOCK
local function take(count)
  at = at + count
  return unpack(ARGV, at - count, at - 1)
end

-- The reply to one event.
local function reply_to(letter, camera, fence, id, json, fields, own)
  if published[json] then return published[json] end
  local kind, restores = string.lower(letter), letter ~= string.lower(letter)
  if is_fenced(camera, fence) then return 'fenced' end
  if id ~= '' and not has_forgotten(id) then
    if restores then effect[kind](camera, unpack(own)) end
    return id
  end
  return effect[kind](camera, unpack(own)) or publish(camera, json, fields)
end

local VALUES = {s = 3, e = 3, t = 1, o = 0}
local reply = {floor}
while at <= #ARGV do
  local letter, camera, fence, id, json, count = take(6)
  local fields = {take(tonumber(count))}
  reply[#reply + 1] = reply_to(letter, camera, fence, id, json, fields, {take(VALUES[string.lower(letter)])})
end
local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
reply[1] = last and last[1] or '0-0'
return reply
