-- Goes in front of all scripts that write: the types that their keys must have.

-- The error for the first key of a wrong type, or nil. Scripts do not roll back, so they call this first.
local function misfit(wanted)
  for key, kind in pairs(wanted) do
    local found = redis.call('TYPE', key)['ok']
    if found ~= kind and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. kind)
    end
  end
end
