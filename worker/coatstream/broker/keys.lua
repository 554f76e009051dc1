-- Put in front of all scripts that write: what their keys must hold.

-- The error for the first key that holds what it must not, or nil. Scripts do not roll back: this comes first.
local function misfit(wanted)
  for key, kind in pairs(wanted) do
    local found = redis.call('TYPE', key)['ok']
    if found ~= kind and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. kind)
    end
  end
end
