-- Forget a user: everything that is theirs goes at once, and a tombstone refuses what happened before.
--
-- KEYS[1] lw:{pp}:<tenant>:gone:<user hash>  string  when the user was erased (unix ms)
-- KEYS[2] lw:{pp}:log                        stream  k x, t tenant, u user, g when (unix ms), p '': the archive must forget them too
-- KEYS[3] lw:{pp}:<tenant>:meta:<user>       hash    n, l, m:<user> for each that was merged into this one
-- KEYS[4...] seq, ids and the states of every model
-- ARGV    tenant, user, now (unix ms), how long the tombstone stays (ms), the identities that are erased together
-- Returns {events that the user has had, {}}, again for a user who is gone already; or {0, those who were merged into this one and are
--         not among the identities}, and nothing is done

local together = {}
for i = 5, #ARGV do together[ARGV[i]] = true end
local others = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
  local name = string.match(field, '^m:(.*)$')
  if name and not together[name] then others[#others + 1] = name end
end
if #others > 0 then
  return { 0, others }
end

local appended = tonumber(redis.call('HGET', KEYS[3], 'n')) or 0
-- An event that is dated in the future of its erasure, as far as clocks may be wrong, must not come back either.
local at = math.max(tonumber(ARGV[3]), tonumber(redis.call('HGET', KEYS[3], 'l')) or 0)
redis.call('DEL', unpack(KEYS, 3))
redis.call('SET', KEYS[1], string.format('%.0f', at), 'PX', ARGV[4])
redis.call('XADD', KEYS[2], '*', 'k', 'x', 't', ARGV[1], 'u', ARGV[2], 'g', string.format('%.0f', at), 'p', '')
return { appended, others }
