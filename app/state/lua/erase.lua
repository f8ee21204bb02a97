-- Forget a user: everything that is theirs goes at once, and a tombstone refuses what happened before.
--
-- KEYS[1] lw:{pp}:<tenant>:gone:<user hash>  string  when the user was erased (unix ms)
-- KEYS[2] lw:{pp}:log                        stream  k x, t tenant, u user, g when (unix ms), p '': the archive must forget them too
-- KEYS[3] lw:{pp}:<tenant>:meta:<user>       hash    n, l
-- KEYS[4...] seq, ids and the states of every model
-- ARGV    tenant, user, now (unix ms), how long the tombstone stays (ms)
-- Returns {events that the user has had, keys removed}; again for a user who is gone already

local appended = tonumber(redis.call('HGET', KEYS[3], 'n')) or 0
-- An event that is dated in the future of its erasure, as far as clocks may be wrong, must not come back either.
local at = math.max(tonumber(ARGV[3]), tonumber(redis.call('HGET', KEYS[3], 'l')) or 0)
local removed = redis.call('DEL', unpack(KEYS, 3))
redis.call('SET', KEYS[1], string.format('%.0f', at), 'PX', ARGV[4])
redis.call('XADD', KEYS[2], '*', 'k', 'x', 't', ARGV[1], 'u', ARGV[2], 'g', string.format('%.0f', at), 'p', '')
return { appended, removed }
