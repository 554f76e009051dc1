-- Deletes dead letters and takes their bytes off the books, in one atomic step. Stands behind accounts.lua.
--
-- KEYS  1 dead letters  2 books
-- ARGV  ids of dead letters
-- Reply one digit per id: 1 = deleted now, 0 = there is none
--
-- XDEL takes no memory, so letters can be deleted when a server is full, which is when it is needed most.

local dead, books = unpack(KEYS)

local wrong = misfit({[dead] = 'stream', [books] = 'hash'})
if wrong then return wrong end

local function discard(id)
  local letter = redis.call('XRANGE', dead, id, id)[1]
  if not letter then return '0' end
  redis.call('XDEL', dead, id)
  note('dead_bytes', -size_of(letter[2]))
  return '1'
end

local done = {}
for i, id in ipairs(ARGV) do done[i] = discard(id) end
write_books(books)
return table.concat(done)
