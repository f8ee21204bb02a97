-- Count what was used in one context: decayed counts per item of one value of a facet, and how much there was of that value.
-- count(t) = sum over events of weight * 2 ^ -((t - t_e) / half_life), t_e <= t.
--
-- KEYS[1] lw:{context-<tenant>}:<half-life>:<facet>          hash  value -> "time count" (unix ms, %.17g) of all its events
-- KEYS[2] lw:{context-<tenant>}:<half-life>:<facet>:<value>  hash  item id -> "time count" of its events with that value
-- ARGV    value, half-life (ms), most values, most items of a value, TTL (ms), then per event: item id, weight, time (unix ms)
-- Returns the value that had to go for this one, whose items are the caller's to remove; '' if none had to; nil if there is no
-- room for this one: nothing is counted

-- Chance may be asked before writing: effects are replicated, not the script. Said aloud for Redis 6.
if redis.replicate_commands then redis.replicate_commands() end

local value, half_life = ARGV[1], tonumber(ARGV[2])

local function parsed(found)
  local time, count = string.match(found or '', '^(%S+) (%S+)$')
  return tonumber(time or '0'), tonumber(count or '0')
end

-- A late event counts with its own age; a newer one first ages what was there. One of the two exponents is 0.
local function add(key, field, weight, time)
  local before, count = parsed(redis.call('HGET', key, field))
  local reference = count > 0 and math.max(before, time) or time
  count = count * 2 ^ -((reference - before) / half_life) + weight * 2 ^ -((reference - time) / half_life)
  redis.call('HSET', key, field, string.format('%.0f %.17g', reference, count))
end

-- Full: the lightest of a few drawn at random makes room, if it is no heavier. What is used much stays, and what rises comes in.
local function lightest(key, weight, time)
  local drawn = redis.call('HRANDFIELD', key, 6, 'WITHVALUES')
  local found, least
  for i = 1, #drawn, 2 do
    local before, count = parsed(drawn[i + 1])
    count = count * 2 ^ -((math.max(time, before) - before) / half_life)
    if not least or count < least then
      found, least = drawn[i], count
    end
  end
  return least and least <= weight and found or nil
end

local total, latest = 0, 0
for at = 6, #ARGV, 3 do
  total = total + tonumber(ARGV[at + 1])
  latest = math.max(latest, tonumber(ARGV[at + 2]))
end

local gone = ''
if redis.call('HEXISTS', KEYS[1], value) == 0 then
  if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then
    gone = lightest(KEYS[1], total, latest)
    if not gone then
      return nil
    end
    redis.call('HDEL', KEYS[1], gone)
  end
  redis.call('UNLINK', KEYS[2]) -- what is left of another time
end

local items = redis.call('HLEN', KEYS[2])
for at = 6, #ARGV, 3 do
  local item, weight, time = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  add(KEYS[1], value, weight, time)
  local new = redis.call('HEXISTS', KEYS[2], item) == 0
  if new and items >= tonumber(ARGV[4]) then
    local out = lightest(KEYS[2], weight, time)
    if out then
      redis.call('HDEL', KEYS[2], out)
      items = items - 1
    end
  end
  if not new or items < tonumber(ARGV[4]) then
    add(KEYS[2], item, weight, time)
    if new then
      items = items + 1
    end
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return gone
