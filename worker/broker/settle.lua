-- Gives each frame of a batch its one outcome, in one atomic step: publish and settle, drop, or bury.
--
-- KEYS  1 frames in  2 labels out  3 newest label per source  4 dead letters  5 the caller's memo
-- ARGV  1 consumer group  2 labels kept  3 sources in the hash  4 dead letters kept  5 channel prefix
--       6 number of this call (rises by 1)  7 the memo's life in ms
--       then one block per frame:
--         'publish' entry_id|'' frame_id source captured_at published_at label score json
--         'drop'    entry_id
--         'bury'    entry_id reason error died_at worker
-- Reply { one digit per frame: 1 = done now, 0 = somebody else had settled that entry; sources left out of the hash }
--
-- Why it may be sent twice. XACK's reply is the arbiter: only who gets 1 publishes, so a queue frame has one outcome
-- whoever tries and however often. A camera's frame has no entry; for it, and to give a repeated call its true reply, the
-- memo holds the number and the reply of the caller's last call. A call that arrives late (its connection was given up
-- while the server was frozen) finds a higher number and does nothing.
-- Why in this order. Scripts do not roll back, so the types of all keys are looked at before the first XACK, and what is
-- of use only beside the label (XDEL, the hash, the channel) may be refused to this user without harm. A server at
-- `maxmemory` lets a script finish whose first write frees memory or takes none, hence PEXPIRE (and no shebang): the
-- queue drains when memory is full.

local frames, labels, latest, dead, memo = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, labels_kept, sources_kept, dead_kept = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local prefix, number, memo_ms = ARGV[5], tonumber(ARGV[6]), ARGV[7]
local MAX_VALUES = 7800 -- of a dead letter's own: Lua can pass some 8,000 to one call, strangers may send more
local FIELDS = {'image', 'pixels', 'width', 'height', 'format', 'source', 'frame_id', 'captured_at', 'expires_at', 'meta'}

for key, wanted in pairs({[frames] = 'stream', [labels] = 'stream', [dead] = 'stream', [latest] = 'hash', [memo] = 'string'}) do
  local found = redis.call('TYPE', key)['ok']
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. wanted)
  end
end

local last = redis.call('GET', memo)
if last then
  local last_number, last_reply = string.match(last, '^(%d+) (%d*)$')
  if tonumber(last_number) >= number then return {last_reply, 0} end
end
redis.call('PEXPIRE', memo, memo_ms)

local function take(entry_id)
  if redis.call('XACK', frames, group, entry_id) ~= 1 then return false end
  redis.pcall('XDEL', frames, entry_id)
  return true
end

local left_out = 0

local function remember(source, captured_at, published_at, json)
  local newest = redis.pcall('HGET', latest, source)
  if type(newest) == 'string' then
    local at = tonumber(string.match(newest, '"captured_at":([%d.eE+-]+)') or '')
    -- a capture time in the future is a wrong clock's: it must not hold its place until that day
    if at and at > tonumber(captured_at) and at <= tonumber(published_at) then return end
  elseif (tonumber(redis.pcall('HLEN', latest)) or 0) >= sources_kept then
    left_out = left_out + 1
    return
  end
  redis.pcall('HSET', latest, source, json)
end

local function publish(entry_id, frame_id, source, captured_at, published_at, label, score, json)
  if entry_id == '' then
    redis.call('XADD', labels, 'MAXLEN', '~', labels_kept, '*', 'frame_id', frame_id, 'source', source,
      'captured_at', captured_at, 'published_at', published_at, 'label', label, 'score', score, 'status', 'ok', 'json', json)
  else
    if not take(entry_id) then return '0' end
    redis.call('XADD', labels, 'MAXLEN', '~', labels_kept, '*', 'frame_id', frame_id, 'entry_id', entry_id, 'source', source,
      'captured_at', captured_at, 'published_at', published_at, 'label', label, 'score', score, 'status', 'ok', 'json', json)
  end
  remember(source, captured_at, published_at, json)
  redis.pcall('PUBLISH', prefix .. source, json) -- pcall: a user without the right to a channel still gets the stream
  return '1'
end

-- All of an entry's fields and values; of one with thousands the frame's own, then as many others as one call can take.
local function own_values(values)
  if #values <= MAX_VALUES then return values end
  local kept, known = {}, {}
  for _, name in ipairs(FIELDS) do known[name] = true end
  for _, wanted in ipairs({true, false}) do
    for i = 1, #values, 2 do
      if (known[values[i]] or false) == wanted and #kept < MAX_VALUES then
        kept[#kept + 1], kept[#kept + 2] = values[i], values[i + 1]
      end
    end
  end
  return kept
end

local function bury(entry_id, reason, problem, died_at, worker)
  local pending = redis.pcall('XPENDING', frames, group, entry_id, entry_id, 1) -- pcall: the group may have vanished
  local entry = redis.call('XRANGE', frames, entry_id, entry_id)
  if not take(entry_id) then return '0' end
  local letter = own_values(entry[1] and entry[1][2] or {})
  for _, value in ipairs({'reason', reason, 'error', problem, 'deliveries', pending[1] and pending[1][4] or 0,
                          'entry_id', entry_id, 'died_at', died_at, 'worker', worker}) do
    letter[#letter + 1] = value
  end
  redis.call('XADD', dead, 'MAXLEN', '~', dead_kept, '*', unpack(letter))
  return '1'
end

local done, i = {}, 8
while i <= #ARGV do
  local kind = ARGV[i]
  if kind == 'publish' then
    done[#done + 1] = publish(unpack(ARGV, i + 1, i + 8))
    i = i + 9
  elseif kind == 'drop' then
    done[#done + 1] = take(ARGV[i + 1]) and '1' or '0'
    i = i + 2
  else
    done[#done + 1] = bury(unpack(ARGV, i + 1, i + 5))
    i = i + 6
  end
end
local reply = table.concat(done)
redis.call('SET', memo, ARGV[6] .. ' ' .. reply, 'PX', memo_ms)
return {reply, left_out}
