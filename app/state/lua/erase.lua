-- Forget a user: everything that is theirs goes at once, and a tombstone refuses what happened before.
--
-- KEYS[1] lw:{pp}:<tenant>:gone:<user hash>  string  time (unix ms) up to which events of the user are refused
-- KEYS[2] lw:{pp}:log                        stream  k x, t tenant, u user, g that time, p '': the archive must forget them too
-- KEYS[3] lw:{pp}:<tenant>:meta:<user>       hash    n, l, m:<user> for each that was merged into this one, with the name of that merge;
--                                                    to, ik where this one went, and the name of that merge
-- KEYS[4...] seq, ids, shown and the states of every model
-- ARGV    tenant, user, time (unix ms) up to which events are refused at least, how long the tombstone stays (ms), the merge by which this
--         user is one of the identities that are erased together ('': the user that has the events, or that was named), who has the
--         events, then each that was merged into one of them, and the name of that merge
-- Returns {events that the user has had, {}, time up to which events are refused from now on}, again for a user who is gone already; {0,
--         those who were merged into this one and are not among the identities, with the names of the merges, what that time would
--         have been}, and nothing is done; or {-1, {}, 0} if the user did not go by that merge, and nothing is done: the mark is of
--         an earlier life, that was erased, and who has the name now is another one; or {-2, {}, 0} if the events have gone to
--         somebody else meanwhile, and nothing is done

-- A meta that is damaged says nothing, and goes; but only with who was asked for by name, or has the others' events.
local kind = redis.call('TYPE', KEYS[3])['ok']
local sound = kind == 'hash' or kind == 'none'
if ARGV[5] ~= '' then
  local went = sound and redis.call('HMGET', KEYS[3], 'to', 'ik') or {}
  if not went[1] or (went[2] or '1') ~= ARGV[5] then -- a merge that was restored from an archive has no other name than 1
    return { -1, {}, 0 }
  end
end
local together = {}
for i = 7, #ARGV, 2 do together[ARGV[i]] = ARGV[i + 1] end
local to = sound and redis.call('HGET', KEYS[3], 'to')
if ARGV[5] == '' and to and to ~= ARGV[6] and not together[to] then
  return { -2, {}, 0 }
end

-- An event that is dated in the future of its erasure, as far as clocks may be wrong, must not come back either: not when the erasure
-- is repeated, and not when that is done by a host whose clock is behind. And each erasure leaves another tombstone than there was:
-- by that, whoever brings a merged user's events sees that somebody was erased since they were read.
local latest = sound and tonumber(redis.call('HGET', KEYS[3], 'l')) or 0
local before = tonumber(redis.pcall('GET', KEYS[1])) or -1 -- of another type: as good as none
local upto = math.max(tonumber(ARGV[3]), latest, before + 1)

local others = {}
local fields = sound and redis.call('HGETALL', KEYS[3]) or {}
for i = 1, #fields, 2 do
  local name = string.match(fields[i], '^m:(.*)$')
  if name and together[name] ~= fields[i + 1] then
    others[#others + 1] = name
    others[#others + 1] = fields[i + 1]
  end
end
if #others > 0 then
  return { 0, others, upto }
end

redis.call('XLEN', KEYS[2]) -- of another type, it is met before anything is done: an error in the middle undoes nothing
local appended = sound and tonumber(redis.call('HGET', KEYS[3], 'n')) or 0
redis.call('DEL', unpack(KEYS, 3))
redis.call('SET', KEYS[1], string.format('%.0f', upto), 'PX', ARGV[4])
redis.call('XADD', KEYS[2], '*', 'k', 'x', 't', ARGV[1], 'u', ARGV[2], 'g', string.format('%.0f', upto), 'p', '')
return { appended, others, upto }
