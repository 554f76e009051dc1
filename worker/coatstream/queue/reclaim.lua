-- Takes over entries whose worker is silent. One pass does everything that is due: hands out, buries, counts.
--
-- KEYS  1 frames in  2 dead letters  3 gate  4 books  5 admitted entries per source
-- ARGV  1 consumer group  2 me  3 idle for so many ms  4 entries wanted  5 '1' = one suspect, alone  6 deliveries at most
--       7 dead letters kept  8 their bytes at most  9 the gate's life in ms  10 now, Unix seconds
--       11 prefix of the channels of failures  12 bytes after which no further entry is handed out  13 longest picture
-- Reply { { { id, bytes of the picture that is left out, fields }, ... }, { source of each buried entry, ... }, entries that were
--         trimmed while a worker had them, 1 = suspects are waiting, dead letters that had to go }
--
-- XPENDING IDLE, not XAUTOCLAIM: that looks at ten times COUNT entries and stops, so idle ones behind busy ones stay.
-- An entry that was delivered before (its count is 1 or more) was in the hands of a worker that vanished: it may be what
-- killed it. Such a suspect is handed out alone, to a worker that has nothing else in hand, so that its count rises for
-- its own doing only. An entry that was released unseen has count 0 and is like new.
-- My own entries are never taken: they are idle because I am stuck, and then I must not get more.
-- The gate is a negative cache: set when nothing was found, so that a hundred workers look as often as one.

local frames, dead, gate, books, sources = unpack(KEYS)
local group, me, idle, want, solo = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local max_deliveries, dead_kept, dead_bytes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local gate_ms, now, failures = ARGV[9], ARGV[10], ARGV[11]
local room, longest = tonumber(ARGV[12]), tonumber(ARGV[13])
local PAGE, PAGES, MAX_BURIED = 64, 64, 16 -- of one call: it holds up the server while it runs
local MAX_SOURCE, MAX_FRAME_ID, DEFAULT_SOURCE = 128, 256, 'queue' -- as coatstream.queue.entry has them

local wrong = misfit({[frames] = 'stream', [dead] = 'stream', [books] = 'hash', [sources] = 'hash', [gate] = 'string'})
if wrong then return wrong end
-- Believed while its life is plausible: a server's clock that went back leaves it shut for hours. pcall: users of earlier
-- releases have no right to PTTL.
local left = redis.pcall('PTTL', gate)
local shut = type(left) == 'number' and left > 0 and left <= tonumber(gate_ms)
if type(left) ~= 'number' then shut = redis.call('EXISTS', gate) == 1 end
if shut then return {{}, {}, 0, 0, 0} end

local found, buried, trimmed, suspects, seen = {}, {}, 0, 0, 0

local function field_of(values, name)
  for i = 1, #values, 2 do
    if values[i] == name then return values[i + 1] end
  end
  return ''
end

-- Its bytes as admission counted them, or nil: a producer may write nonsense there.
local function admitted_of(values)
  local text = field_of(values, 'admitted')
  local bytes = #text <= 12 and string.find(text, '^%d+$') and tonumber(text)
  return bytes and bytes > 0 and bytes or nil
end

-- Well-formed UTF-8 beyond ASCII (RFC 3629), by lead byte: overlong forms and surrogates are none.
local MULTIBYTE = {
  '[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]', '[\225-\236\238\239][\128-\191][\128-\191]',
  '\237[\128-\159][\128-\191]', '\240[\144-\191][\128-\191][\128-\191]',
  '[\241-\243][\128-\191][\128-\191][\128-\191]', '\244[\128-\143][\128-\191][\128-\191]',
}

-- A field as the worker would read it; '' where it is no text, or longer than this many characters.
local function text_of(values, name, longest)
  local text = field_of(values, name)
  if #text > 4 * longest then return '' end
  local characters = text
  for _, pattern in ipairs(MULTIBYTE) do characters = string.gsub(characters, pattern, 'x') end
  return #characters <= longest and not string.find(characters, '[\128-\255]') and text or ''
end

-- An entry that was deleted has left nothing but its id: not even its source is known.
local function count_trimmed(id)
  redis.call('XACK', frames, group, id)
  note('trimmed', 1)
  trimmed = trimmed + 1
  tell_failure(failures, now, {entry_id = id, source = DEFAULT_SOURCE, frame_id = '', status = 'dropped', reason = 'trimmed',
                               error = 'the entry was deleted from the stream before it had a label'})
end

local barred = nil -- why no letter can be written; then nothing is buried, and the call fails

local function give_up(id, owner, deliveries)
  barred = barred or bars_adding(dead)
  if barred then return end
  local entry = redis.call('XRANGE', frames, id, id)[1]
  if not entry then return count_trimmed(id) end
  redis.call('XACK', frames, group, id)
  local gone = redis.pcall('XDEL', frames, id) -- pcall: a user without that right must not lose the letter
  if type(gone) == 'table' then note_undeleted(frames, books) end
  local source, admitted = field_of(entry[2], 'source'), admitted_of(entry[2])
  if source == '' then source = DEFAULT_SOURCE end
  if admitted then unadmit(sources, source, admitted) end
  local why = {reason = 'delivery_limit', deliveries = deliveries, entry_id = id, died_at = now, worker = owner,
               error = 'given to workers ' .. deliveries .. ' times, and none settled it'}
  bury(dead, books, entry[2], why, dead_kept, dead_bytes)
  local named = text_of(entry[2], 'source', MAX_SOURCE)
  tell_failure(failures, now, {entry_id = id, source = named == '' and DEFAULT_SOURCE or named, status = 'dead',
                               frame_id = text_of(entry[2], 'frame_id', MAX_FRAME_ID), reason = why.reason, error = why.error})
  buried[#buried + 1] = source
end

local function hand_out(id)
  local claimed = redis.call('XCLAIM', frames, group, me, idle, id)
  if #claimed == 0 then return count_trimmed(id) end -- there is no such entry any more
  local fields, left_out, size = carried(claimed[1][2], longest)
  found[#found + 1] = {id, left_out, fields}
  room = room - size
end

local function look_at(id, owner, deliveries)
  if owner == me then return end
  if deliveries >= max_deliveries then
    if #buried < MAX_BURIED then give_up(id, owner, deliveries) end
  elseif deliveries >= 1 then
    if solo and #found == 0 then hand_out(id) else suspects = 1 end
  elseif not solo and #found < want and room > 0 then
    hand_out(id)
  end
end

local from = '-'
for _ = 1, PAGES do
  local page = redis.call('XPENDING', frames, group, 'IDLE', idle, from, '+', PAGE)
  seen = seen + #page
  for _, entry in ipairs(page) do look_at(entry[1], entry[2], entry[4]) end
  if #page < PAGE or #found >= want or room <= 0 then break end
  from = '(' .. page[#page][1]
end
write_books(books)
if barred then return barred end -- what was claimed meanwhile is found by its owner's next sweep
if seen == 0 then -- an idle entry that I may not have (it is mine, or no suspect) is there for others
  redis.pcall('SET', gate, me, 'PX', gate_ms) -- pcall: refused at `maxmemory`, and nothing is lost by that
end
return {found, buried, trimmed, suspects, rises.dead_dropped or 0}
