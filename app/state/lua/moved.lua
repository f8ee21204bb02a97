-- The last step of a merge: the target has this user's events, so they go here.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>  hash    only to, ms and ik stay
-- KEYS[2] lw:{pp}:log                   stream  k m, t tenant, u user, o target, c events, p '': the last c events that the archive has of
--                                               u are with o now; older ones, which had left the sequence, stay in the archive alone
-- KEYS[3...] seq, ids, shown and the states of every model
-- ARGV    tenant, user, target, log_max_length (0: no bound), name of the merge
-- Returns 1, or 0 if there was nothing to do

local found = redis.call('HMGET', KEYS[1], 'to', 'ms', 'ik')
if found[1] ~= ARGV[3] or found[2] ~= 'p' or (found[3] or '1') ~= ARGV[5] then
  return 0
end
redis.call('XLEN', KEYS[2]) -- of another type, it is met before anything is done: an error in the middle undoes nothing
local count = redis.call('LLEN', KEYS[3])
redis.call('DEL', KEYS[1], unpack(KEYS, 3))
redis.call('HSET', KEYS[1], 'to', ARGV[3], 'ms', 'd')
if found[3] then redis.call('HSET', KEYS[1], 'ik', found[3]) end
redis.call('XADD', KEYS[2], '*', 'k', 'm', 't', ARGV[1], 'u', ARGV[2], 'o', ARGV[3], 'c', string.format('%.0f', count), 'p', '')
if ARGV[4] ~= '0' then
  redis.call('XTRIM', KEYS[2], 'MAXLEN', '~', ARGV[4])
end
return 1
