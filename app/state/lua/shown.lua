-- Give who has the events of a merged user what that one was shown, too, if the merge is known there, and it was not merged into another
-- one. A second time changes nothing.
--
-- KEYS[1] lw:{pp}:<tenant>:shown:<user>      string  see impression.lua
-- KEYS[2] lw:{pp}:<tenant>:meta:<user>       hash    to, m:<user> with the names of merges, separated by blanks
-- ARGV    what the other one was shown, that one, name of the merge, most ids, most showings, how long they are remembered (ms)
-- Returns 1 if it is done, 0 if not

if redis.call('HEXISTS', KEYS[2], 'to') == 1 or not knows(KEYS[2], ARGV[2], ARGV[3]) then
  return 0
end

local function parts(raw)
  local ids, showings = {}, {}
  if #raw >= 2 then
    local size = 2 + 8 * struct.unpack('<I2', raw)
    if size <= #raw and (#raw - size) % 12 == 0 then
      for i = 3, size, 8 do ids[#ids + 1] = string.sub(raw, i, i + 7) end
      for i = size + 1, #raw, 12 do showings[#showings + 1] = string.sub(raw, i, i + 11) end
    end
  end
  return ids, showings
end

local function union(first, second, most, key)
  local known, all = {}, {}
  for _, some in ipairs({ first, second }) do
    for _, one in ipairs(some) do
      if not known[one] then
        known[one] = true
        all[#all + 1] = one
      end
    end
  end
  if key then table.sort(all, function(a, b) return key(a) < key(b) or (key(a) == key(b) and a < b) end) end
  local kept = {}
  for i = math.max(1, #all - most + 1), #all do kept[#kept + 1] = all[i] end
  return table.concat(kept)
end

local other_ids, other_showings = parts(ARGV[1])
local own_ids, own_showings = parts(redis.call('GET', KEYS[1]) or '')
local ids = union(other_ids, own_ids, tonumber(ARGV[4]))
local showings = union(other_showings, own_showings, tonumber(ARGV[5]), function(one) return (struct.unpack('<I4', one, 9)) end)
redis.call('SET', KEYS[1], struct.pack('<I2', #ids / 8) .. ids .. showings, 'PX', ARGV[6])
return 1
