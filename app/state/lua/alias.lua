-- Lead a user to another one, or take that back: the first step of a merge. Or shorten a way that goes on from there.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>  hash  to the user that this one is merged into, ms p while its events are on their way, d then
-- ARGV    target, then 1 to lead, 0 to take back what is not done yet, 2 to lead there who has come to the user in ARGV[3]
-- Returns {to, ms} as it is afterwards, empty strings if this user is led nowhere

local found = redis.call('HMGET', KEYS[1], 'to', 'ms')
if ARGV[2] == '1' and not found[1] then
  redis.call('HSET', KEYS[1], 'to', ARGV[1], 'ms', 'p')
elseif ARGV[2] == '2' and found[1] == ARGV[3] and found[2] == 'd' then
  redis.call('HSET', KEYS[1], 'to', ARGV[1])
elseif ARGV[2] == '0' and found[1] == ARGV[1] and found[2] == 'p' then
  redis.call('HDEL', KEYS[1], 'to', 'ms')
end
found = redis.call('HMGET', KEYS[1], 'to', 'ms')
return { found[1] or '', found[2] or '' }
