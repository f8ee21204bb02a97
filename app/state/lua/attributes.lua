-- Replace a user's attributes. They set the initial state, so a change starts a new epoch and every state is folded again.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>  hash  e epoch, a attributes (MessagePack, sorted by name)
-- ARGV    attributes, new epoch (8 random bytes)
-- Returns 1 if something changed, 0 if the user has just these attributes already

local meta = redis.call('HMGET', KEYS[1], 'e', 'a')
if meta[1] and meta[2] == ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'a', ARGV[1], 'e', ARGV[2])
return 1
