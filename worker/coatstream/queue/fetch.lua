-- Goes behind accounts.lua: what a reply carries of an entry.

local MOST_TEXT = 8192 -- bytes of a field besides the picture that a reply carries of a large entry

-- Its fields, the bytes of the picture that is left out (0: none), and the bytes of the fields. Of an entry over
-- `longest` bytes only the fields of the contract travel, and a picture over `longest` does not.
local function carried(values, longest)
  local size = 0
  for i = 2, #values, 2 do size = size + #values[i] end
  if size <= longest then return values, 0, size end
  local kept, left_out = {}, 0
  size = 0
  for i = 1, #values, 2 do
    local name, value = values[i], values[i + 1]
    local is_picture = name == 'image' or name == 'pixels'
    if is_picture and #value > longest then
      left_out = left_out + #value
    elseif is_picture or KNOWN[name] or name == 'admitted' then
      if not is_picture then value = string.sub(value, 1, MOST_TEXT) end
      kept[#kept + 1], kept[#kept + 2], size = name, value, size + #value
    end
  end
  return kept, left_out, size
end
