-- Count what was used within one bucket of time. A slot holds one bucket after the other; a later one takes it over.
--
-- KEYS[1] lw:{trend-<tenant>}:<width>:<slot>  hash  item id -> weight (%.17g)
--                                                   the empty id: "bucket time": which bucket this is, unix microseconds of its last change
-- ARGV    bucket, most items of a bucket, TTL (ms), then per item: id, weight
-- Returns 1, or 0 if the slot has a later bucket by now: nothing is counted

-- The clock and chance may be asked before writing: effects are replicated, not the script. Said aloud for Redis 6.
if redis.replicate_commands then redis.replicate_commands() end

local bucket, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local there = tonumber(string.match(redis.call('HGET', KEYS[1], '') or '', '^(%d+) ') or '-1')
if there > bucket then
  return 0
elseif there < bucket then
  redis.call('UNLINK', KEYS[1])
end

local items = math.max(redis.call('HLEN', KEYS[1]) - 1, 0)
for at = 4, #ARGV, 2 do
  local item, weight = ARGV[at], tonumber(ARGV[at + 1])
  local before = redis.call('HGET', KEYS[1], item)
  local room = before or items < most
  if not room then
    -- Full: the lightest of a few drawn at random goes, if it is no heavier. What is used much stays, and whatever rises comes in.
    local drawn = redis.call('HRANDFIELD', KEYS[1], 6, 'WITHVALUES')
    local lightest, least
    for i = 1, #drawn, 2 do
      local drawn_weight = tonumber(drawn[i + 1])
      if drawn[i] ~= '' and (not least or drawn_weight < least) then
        lightest, least = drawn[i], drawn_weight
      end
    end
    if lightest and least <= weight then
      redis.call('HDEL', KEYS[1], lightest)
      items, room = items - 1, true
    end
  end
  if room then
    redis.call('HSET', KEYS[1], item, string.format('%.17g', (tonumber(before or '0')) + weight))
    if not before then
      items = items + 1
    end
  end
end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], '', string.format('%.0f %s%06d', bucket, now[1], now[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
