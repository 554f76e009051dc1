-- Puts dead letters back into the frames stream, each once, in one atomic step.
--
-- KEYS  1 dead letters  2 frames in
-- ARGV  ids of dead letters
-- Reply one digit per id: 1 = moved now, 0 = there is none, 2 = it stays: it has no fields to put back, or
--       more than one XADD can be given
--
-- A letter has its frame's own fields, then the six pairs that settle.lua appends. Only those last six are taken off: a
-- frame may have fields of the same names.
-- XADD goes before XDEL: on a server at `maxmemory` the first one is refused, and then nothing has happened.

local dead, frames = KEYS[1], KEYS[2]
local APPENDED = {'reason', 'error', 'deliveries', 'entry_id', 'died_at', 'worker'}
local MAX_VALUES = 7900 -- Lua can pass some 8,000 to one call

for _, key in ipairs(KEYS) do
  local found = redis.call('TYPE', key)['ok']
  if found ~= 'stream' and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a stream')
  end
end

local function own_values(letter)
  local first = #letter - 2 * #APPENDED
  for i, name in ipairs(APPENDED) do
    if letter[first + 2 * i - 1] ~= name then return #letter end -- not a letter of settle.lua's
  end
  return first
end

local function replay(id)
  local entry = redis.call('XRANGE', dead, id, id)[1]
  if not entry then return '0' end
  local last = own_values(entry[2])
  if last == 0 or last > MAX_VALUES then return '2' end
  redis.call('XADD', frames, '*', unpack(entry[2], 1, last))
  redis.call('XDEL', dead, id)
  return '1'
end

local done = {}
for i, id in ipairs(ARGV) do done[i] = replay(id) end
return table.concat(done)
