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

local counted = 0
for at = 2 + #half_lives, #ARGV, 4 do
  local item, weight, time = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local fields = {}
  for number in string.gmatch(redis.call('HGET', KEYS[1], item) or ARGV[at + 3], '%S+') do
    fields[#fields + 1] = tonumber(number)
  end
  local reference = math.max(fields[1] or time, time)
  local out = { string.format('%.0f', reference) }
  for h, half_life in ipairs(half_lives) do
    -- A late event counts with its own age; a newer one first ages what was there. One of the two exponents is 0.
    local aged = (fields[1 + h] or 0) * 2 ^ -((reference - (fields[1] or reference)) / half_life)
    out[1 + h] = string.format('%.17g', aged + weight * 2 ^ -((reference - time) / half_life))
  end
  redis.call('HSET', KEYS[1], item, table.concat(out, ' '))
  counted = counted + 1
end
return redis.call('HINCRBY', KEYS[1], '', counted)
