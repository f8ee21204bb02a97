-- Replace a user's attributes. They set the initial state, so a change starts a new epoch and every state is folded again.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>  hash    e epoch, a attributes (MessagePack, sorted by name), to/ms/ik after a merge, m:<user> names
--                                               of the merges by which others came, was the last epochs before this one (8 bytes
--                                               each), d and cut: see expire.lua
-- KEYS[2] lw:{pp}:log                   stream  k a, t tenant, u user, a attributes, p epoch
-- ARGV    tenant, user, attributes, new epoch (8 random bytes), log_max_length (entries; 0: no bound), another user who is meant and
--         was merged into this one (or ''), by this merge
-- Returns 1 if something changed, 0 if the user has just these attributes already; or, as append.lua, {-1, user id, state, -1, merge} for
--         a merged user, {-2} if that merge of the other user is not known here

local meta = redis.call('HMGET', KEYS[1], 'e', 'a', 'to', 'ms', 'ik')
if meta[3] then
  return { -1, meta[3], meta[4] or '', -1, meta[5] or '1' }
end
if ARGV[6] ~= '' and not knows(KEYS[1], ARGV[6], ARGV[7]) then return { -2 } end
if meta[1] and meta[2] == ARGV[3] then
  return 0
end
redis.call('XLEN', KEYS[2]) -- of another type, it is met before anything is done: an error in the middle undoes nothing
redis.call('HSET', KEYS[1], 'a', ARGV[3], 'e', ARGV[4])
if meta[1] then ended(KEYS[1], meta[1]) end
local entry = redis.call('XADD', KEYS[2], '*', 'k', 'a', 't', ARGV[1], 'u', ARGV[2], 'a', ARGV[3], 'p', ARGV[4])
redis.call('HSET', KEYS[1], 'd', string.format('%d', math.floor(tonumber(string.match(entry, '^%d+')) / 86400000)))
if ARGV[5] ~= '0' then
  redis.call('HSET', KEYS[1], 'cut', '1')
  redis.call('XTRIM', KEYS[2], 'MAXLEN', '~', ARGV[5])
end
return 1
