-- A worker says that it is alive, and hears of the others.
--
-- KEYS[1] lw:{lw:model}:workers  hash  worker -> unix ms of its last heartbeat by the clock of Redis, a space, what it says (JSON)
-- ARGV    worker ('' only to listen), what it says ('' to sign off), how long a worker that is silent counts as alive (ms)
-- Returns worker, what it says, ... of all that are alive; the others are forgotten. Whose last heartbeat is of later than now counts
-- from now on: the clock was set back, and who died before that must not be alive until it is as late again

-- The clock may be read before writing: effects are replicated, not the script. Said aloud for Redis 6.
if redis.replicate_commands then redis.replicate_commands() end
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
if ARGV[1] == '' then
  -- nothing to say
elseif ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
end
local alive = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local at, said = string.match(all[i + 1], '^(%d+) (.*)$')
  if at and tonumber(at) > now then
    redis.call('HSET', KEYS[1], all[i], string.format('%.0f', now) .. ' ' .. said)
    at = now
  end
  if at and now - tonumber(at) <= tonumber(ARGV[3]) then
    alive[#alive + 1] = all[i]
    alive[#alive + 1] = said
  else
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return alive
