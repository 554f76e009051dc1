-- Put in front of the scripts about cameras: the version that all workers look at, and records that may be damaged.

-- All workers look again. pcall: another client may have written a text there; any other text will do as well.
local function bump(version)
  local risen = redis.pcall('INCR', version)
  if type(risen) == 'number' then return end
  local now = redis.call('TIME')
  redis.call('SET', version, now[1])
end

-- A hash as a table of records; what is no JSON object counts as not there.
local function records(flat)
  local found = {}
  for i = 1, #flat, 2 do
    local well, record = pcall(cjson.decode, flat[i + 1])
    if well and type(record) == 'table' then found[flat[i]] = record end
  end
  return found
end

local function set_of(names)
  local found = {}
  for _, name in ipairs(names) do found[name] = true end
  return found
end
