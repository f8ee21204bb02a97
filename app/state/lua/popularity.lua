-- Add events to the decayed counts of their items: count(t) = sum over events of weight * 2 ^ -((t - t_e) / half_life), t_e <= t.
--
-- KEYS[1] lw:<tenant>:popularity:<half-lives>  hash  item id -> "time count count ...": unix ms, then one count per half-life (%.17g)
--                                                      the empty id: how many events were ever counted
-- ARGV    number of half-lives H, H half-lives (seconds), then per event: item id, weight, time (unix ms), what an item begins with
--         that has no counts yet: "time count count ...", or ""
-- Returns how many events were ever counted, these included

local half_lives = {}
for h = 1, tonumber(ARGV[1]) do
  half_lives[h] = tonumber(ARGV[1 + h]) * 1000 -- ms
end

-- Read once and written once, however many events of this call an item has: { time, count, count, ... }.
local counts = {}
local function counts_of(item, beginning)
  if not counts[item] then
    local fields = {}
    for number in string.gmatch(redis.call('HGET', KEYS[1], item) or beginning, '%S+') do
      fields[#fields + 1] = tonumber(number)
    end
    counts[item] = fields
  end
  return counts[item]
end

local counted = 0
for at = 2 + #half_lives, #ARGV, 4 do
  local weight, time = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local fields = counts_of(ARGV[at], ARGV[at + 3])
  local before = fields[1] or time
  local reference = math.max(before, time)
  for h, half_life in ipairs(half_lives) do
    -- A late event counts with its own age; a newer one first ages what was there. One of the two exponents is 0.
    local aged = (fields[1 + h] or 0) * 2 ^ -((reference - before) / half_life)
    fields[1 + h] = aged + weight * 2 ^ -((reference - time) / half_life)
  end
  fields[1] = reference
  counted = counted + 1
end
local form = '%.0f' .. string.rep(' %.17g', #half_lives)
for item, fields in pairs(counts) do
  redis.call('HSET', KEYS[1], item, string.format(form, unpack(fields, 1, 1 + #half_lives)))
end
return redis.call('HINCRBY', KEYS[1], '', counted)
