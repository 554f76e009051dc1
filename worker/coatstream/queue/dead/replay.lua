-- Puts dead letters back into the frames stream, each once, in one atomic step. Stands behind accounts.lua.
--
-- KEYS  1 dead letters  2 frames in  3 books
-- ARGV  ids of dead letters
-- Reply one digit per id: 1 = moved now, 0 = there is none, 2 = it stays: it has no fields to put back, or
--       more than one XADD can be given
--
-- A letter has its frame's own fields, then the six pairs that `bury` appends. Only those last six are taken off: a
-- frame may have fields of the same names. What admission wrote (`admitted`, `sequence`) is not put back either: the
-- frame was taken off the admitted ones when it was buried, and would be taken off once more when it is settled.
-- XADD goes before XDEL: on a server at `maxmemory` the first one is refused, and then nothing has happened.

local dead, frames, books = unpack(KEYS)
local APPENDED = {'reason', 'error', 'deliveries', 'entry_id', 'died_at', 'worker'}
local MAX_PASSED = 7900 -- values: Lua can pass some 8,000 to one call

local wrong = misfit({[dead] = 'stream', [frames] = 'stream', [books] = 'hash'})
if wrong then return wrong end

-- How many of a letter's values are its frame's: all of them where no worker wrote the letter.
local function length_of_frame(letter)
  local length = #letter - 2 * #APPENDED
  for i, name in ipairs(APPENDED) do
    if letter[length + 2 * i - 1] ~= name then return #letter end
  end
  return length
end

local function frame_of(letter)
  local length, admitted = length_of_frame(letter), false
  for i = 1, length, 2 do admitted = admitted or letter[i] == 'admitted' end
  local values = {}
  for i = 1, length, 2 do
    local of_admission = admitted and (letter[i] == 'admitted' or letter[i] == 'sequence')
    if not of_admission then values[#values + 1], values[#values + 2] = letter[i], letter[i + 1] end
  end
  return values
end

local function replay(id)
  local letter = redis.call('XRANGE', dead, id, id)[1]
  if not letter then return '0' end
  local values = frame_of(letter[2])
  if #values == 0 or #values > MAX_PASSED then return '2' end
  redis.call('XADD', frames, '*', unpack(values))
  redis.call('XDEL', dead, id)
  note('dead_bytes', -size_of(letter[2]))
  return '1'
end

local done = {}
for i, id in ipairs(ARGV) do done[i] = replay(id) end
write_books(books)
return table.concat(done)
