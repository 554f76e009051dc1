-- Gives each frame of a batch its one outcome, in one atomic step: publish and settle, drop, or bury.
--
-- KEYS  1 frames in  2 labels out  3 newest label per source  4 dead letters  5 the caller's memo  6 books
--       7 admitted entries per source  8 newest fence per camera (only where a label has one)
-- ARGV  1 consumer group  2 labels kept  3 sources in the hash of newest  4 dead letters kept  5 their bytes at most
--       6 channel prefix  7 number of this call (rises by 1)  8 the memo's life in ms  9 now, Unix seconds  10 worker
--       11 a letter per frame: p, c, d or b  12 per frame the entry's bytes as admission counted them, with spaces between;
--       0 for a plain XADD, and '' where all are 0  13 prefix of the channels of failures  14 model
--       then one block per frame (each argument costs; a batch has hundreds):
--         p  publish  entry_id source frame_id captured_at label score json
--         c  a camera's  fence source frame_id captured_at label score json status
--         d  drop     entry_id source reason frame_id
--         b  bury     entry_id source reason error frame_id
-- Reply { one digit per frame: 1 = done now, 0 = another worker had settled that entry; labels left out of the hash;
--         dead letters that had to go }
--
-- A camera's label is refused when its fence is older than the newest that lease.lua has granted: another worker reads the
-- camera by now. Fence 0: the camera is not shared.
-- Why it may be sent twice. XACK's reply is the arbiter: only the caller that gets 1 publishes, so a queue frame has
-- one outcome, however many workers try and however often. A camera's frame has no entry; for it, and to give a repeated call its true reply, the
-- memo holds the number and the reply of the caller's last call. A call that arrives late (its connection was given up
-- while the server was frozen) finds a higher number and does nothing.
-- Why in this order. Scripts do not roll back, so the types of all keys are looked at before the first XACK, and what is
-- of use only beside the label (XDEL, the hash, the channel) may be refused to this user without harm. A server at
-- `maxmemory` lets a script finish whose first write frees memory or takes none, hence PEXPIRE (and no shebang): the
-- queue drains when memory is full.

local frames, labels, latest, dead, memo, books, sources, fences = unpack(KEYS)
local group, labels_kept, sources_kept, dead_kept, dead_bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local prefix, number, memo_ms, now, worker = ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9], ARGV[10]
local kinds, sizes, failures = ARGV[11], string.gmatch(ARGV[12], '%d+'), ARGV[13]
local model, FIRST_BLOCK = ARGV[14], 15
local MAX_IDS = 1000 -- of one XDEL: Lua can pass some 8,000

local wrong = misfit({[frames] = 'stream', [labels] = 'stream', [dead] = 'stream', [latest] = 'hash', [memo] = 'string',
                      [books] = 'hash', [sources] = 'hash'})
wrong = wrong or (fences and misfit({[fences] = 'hash'}))
if wrong then return wrong end

local last = redis.call('GET', memo)
if last then
  local last_number, last_reply = string.match(last, '^(%d+) (%d*)$')
  if last_number and tonumber(last_number) >= number then return {last_reply, 0, 0} end
end
-- A label of a queue's frame frees more than it takes; those of cameras would fill a full server beyond its limit. So
-- there each takes the place of the oldest label. No stream takes the id 0-0; after the first write no error would come.
local is_full = string.find(kinds, 'c', 1, true)
  and string.sub(redis.pcall('XADD', labels, '0-0', 'f', 'v').err, 1, 3) == 'OOM'
redis.call('PEXPIRE', memo, memo_ms)

for kind, stream in pairs({p = labels, c = labels, b = dead}) do
  local barred = string.find(kinds, kind, 1, true) and bars_adding(stream)
  if barred then return barred end
end
if string.find(kinds, 'b', 1, true) then redis.call('XLEN', dead) end -- an error now, not after XACK

local taken = {} -- entries of this batch that are settled here; one XDEL for all costs a third of one for each

local function take(entry_id, admitted, source)
  if redis.call('XACK', frames, group, entry_id) ~= 1 then return false end
  taken[#taken + 1] = entry_id
  if admitted ~= '0' then unadmit(sources, source, tonumber(admitted)) end
  return true
end

local function delete_taken()
  for first = 1, #taken, MAX_IDS do
    local gone = redis.pcall('XDEL', frames, unpack(taken, first, math.min(first + MAX_IDS - 1, #taken)))
    if type(gone) == 'table' then note_undeleted(frames, books) end
  end
end

local newest, order = {}, {} -- of this batch: source -> its newest label; one write per source is enough

local function is_newer(captured_at, than)
  -- a capture time in the future is a wrong clock's: it must not hold its place until that day
  return not than or than <= captured_at or than > tonumber(now)
end

local function remember(source, captured_at, json)
  local own = newest[source]
  if not own then
    order[#order + 1] = source
    newest[source] = {at = captured_at, json = json, labels = 1}
    return
  end
  own.labels = own.labels + 1
  if is_newer(captured_at, own.at) then own.at, own.json = captured_at, json end
end

-- Writes the newest labels down; returns how many labels found no place.
local function write_newest()
  local left_out = 0
  for _, source in ipairs(order) do
    local own, known = newest[source], redis.pcall('HGET', latest, source)
    if type(known) == 'string' then
      if is_newer(own.at, tonumber(string.match(known, '"captured_at":([%d.eE+-]+)') or '')) then
        redis.pcall('HSET', latest, source, own.json)
      end
    elseif (tonumber(redis.pcall('HLEN', latest)) or 0) >= sources_kept then
      left_out = left_out + own.labels
    else
      redis.pcall('HSET', latest, source, own.json)
    end
  end
  return left_out
end

-- The newest of its source, and the channel. pcall: a user without the right to a channel still gets the stream.
local function tell(source, captured_at, json)
  remember(source, tonumber(captured_at), json)
  redis.pcall('PUBLISH', prefix .. source, json)
  return '1'
end

local function publish(admitted, entry_id, source, frame_id, captured_at, label, score, json)
  if not take(entry_id, admitted, source) then return '0' end
  redis.call('XADD', labels, 'MAXLEN', '~', labels_kept, '*', 'frame_id', frame_id, 'entry_id', entry_id, 'source', source,
    'captured_at', captured_at, 'published_at', now, 'label', label, 'score', score, 'status', 'ok', 'model', model, 'json', json)
  note('published', 1)
  return tell(source, captured_at, json)
end

local function publish_camera(fence, source, frame_id, captured_at, label, score, json, status)
  local newest = fence ~= '0' and (tonumber(redis.pcall('HGET', fences, source) or '') or 0)
  if newest and newest > tonumber(fence) then return '0' end
  if newest and newest < tonumber(fence) then -- the grant was forgotten: a failover that lost its last second
    redis.pcall('HSET', fences, source, fence)
  end
  local bound, most = '~', labels_kept
  local there = is_full and redis.pcall('XLEN', labels) -- pcall: earlier releases asked for no right to it
  if type(there) == 'number' then bound, most = '=', math.max(1, there) end
  redis.call('XADD', labels, 'MAXLEN', bound, most, '*', 'frame_id', frame_id, 'source', source, 'captured_at', captured_at,
    'published_at', now, 'label', label, 'score', score, 'status', status, 'fence', fence, 'model', model,
    'json', json)
  return tell(source, captured_at, json)
end

local function drop(admitted, entry_id, source, reason, frame_id)
  if not take(entry_id, admitted, source) then return '0' end
  note('dropped', 1)
  tell_failure(failures, now, {entry_id = entry_id, source = source, frame_id = frame_id, status = 'dropped', reason = reason})
  return '1'
end

local function burial(admitted, entry_id, source, reason, problem, frame_id)
  local pending = redis.pcall('XPENDING', frames, group, entry_id, entry_id, 1) -- pcall: the group may have vanished
  local entry = redis.call('XRANGE', frames, entry_id, entry_id)[1]
  if not take(entry_id, admitted, source) then return '0' end
  local why = {reason = reason, error = problem, deliveries = pending[1] and pending[1][4] or 0, entry_id = entry_id,
               died_at = now, worker = worker}
  bury(dead, books, entry and entry[2] or {}, why, dead_kept, dead_bytes)
  tell_failure(failures, now, {entry_id = entry_id, source = source, frame_id = frame_id, status = 'dead', reason = reason,
                               error = problem})
  return '1'
end

local done = {}

local function settle()
  local at = FIRST_BLOCK
  for n = 1, #kinds do
    local kind, admitted = string.sub(kinds, n, n), sizes() or '0'
    if kind == 'p' then
      done[n] = publish(admitted, unpack(ARGV, at, at + 6))
      at = at + 7
    elseif kind == 'c' then
      done[n] = publish_camera(unpack(ARGV, at, at + 7))
      at = at + 8
    elseif kind == 'd' then
      done[n] = drop(admitted, unpack(ARGV, at, at + 3))
      at = at + 4
    else
      done[n] = burial(admitted, unpack(ARGV, at, at + 4))
      at = at + 5
    end
  end
end

local well, problem = pcall(settle)
delete_taken() -- even then: what is acknowledged and stays in the stream, no worker would ever take
write_books(books) -- even then: what is lost by that shows as unaccounted for
if not well then return type(problem) == 'table' and problem or redis.error_reply(problem) end
local left_out, reply = write_newest(), table.concat(done)
redis.call('SET', memo, ARGV[7] .. ' ' .. reply, 'PX', memo_ms)
return {reply, left_out, rises.dead_dropped or 0}
