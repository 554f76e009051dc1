-- Looks for what became of frames whose message on a channel may be lost. Changes nothing.
--
-- KEYS  1 frames in  2 labels out  3 dead letters
-- ARGV  1 'on': from older to newer; 'back': from newer to older  2 labels from this id on  3 dead letters from this id on
--       ('(' before an id: without it)  4 labels looked at, at most  5 dead letters, at most  6 how many frame ids
--       then frame ids, then ids of entries
-- Reply { { id of the first label looked at, or ''; of the first dead letter, or '' }, the same of the last ones,
--         1 = there may be more, { JSON document, ... } of labels of these frames
--         { { frame_id or '', entry_id, source or '', reason, error, died_at }, ... } of dead letters of these frames
--         one digit per entry: 1 = it is in the stream, 0 = it is not }
--
-- A letter belongs to a frame by its frame_id, or by its entry_id where the frame had no other. Letters and entries come
-- one at a time, since each may hold 16 MB; only what is named above travels.

local frames, labels, dead = unpack(KEYS)
local back, most, most_dead, count = ARGV[1] == 'back', tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local FIRST = 7
local wanted = {}
for i = FIRST, FIRST + count - 1 do wanted[ARGV[i]] = true end

local function page(stream, from, size)
  if back then return redis.call('XREVRANGE', stream, from, '-', 'COUNT', size) end
  return redis.call('XRANGE', stream, from, '+', 'COUNT', size)
end

-- The last value of a field: the six fields that a burial appends stand behind the frame's own.
local function value(fields, name)
  for i = #fields - 1, 1, -2 do
    if fields[i] == name then return fields[i + 1] end
  end
  return ''
end

local first, last, more, found = {'', ''}, {'', ''}, 0, {}
local some = page(labels, ARGV[2], most)
for n, entry in ipairs(some) do
  if n == 1 then first[1] = entry[1] end
  last[1] = entry[1]
  if wanted[value(entry[2], 'frame_id')] then found[#found + 1] = value(entry[2], 'json') end
end
if #some == most then more = 1 end

local buried, from = {}, ARGV[3]
for n = 1, most_dead do
  local letter = page(dead, from, 1)[1]
  if not letter then break end
  local fields = letter[2]
  local frame_id, entry_id = value(fields, 'frame_id'), value(fields, 'entry_id')
  if wanted[frame_id] or wanted[entry_id] then
    buried[#buried + 1] = {frame_id, entry_id, value(fields, 'source'), value(fields, 'reason'), value(fields, 'error'),
                           value(fields, 'died_at')}
  end
  if n == 1 then first[2] = letter[1] end
  last[2], from = letter[1], '(' .. letter[1]
  if n == most_dead then more = 1 end
end

local there = {}
for i = FIRST + count, #ARGV do there[#there + 1] = #redis.call('XRANGE', frames, ARGV[i], ARGV[i]) end
return {first, last, more, found, buried, table.concat(there)}
