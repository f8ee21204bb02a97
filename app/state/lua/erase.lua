-- Begin to forget a person, with the user that has the events: all that is kept of that user goes at once, and a tombstone refuses what
-- happened before. If others were merged into it, it says until they are forgotten, too, that it is being erased: it leads to itself,
-- so that whoever comes finishes that first.
--
-- KEYS[1] lw:{pp}:<tenant>:gone:<user hash>  string  time (unix ms) up to which events of the user are refused
-- KEYS[2] lw:{pp}:log                        stream  k x, t tenant, u user, g that time, p '': the archive must forget them too
-- KEYS[3] lw:{pp}:<tenant>:meta:<user>       hash    n, l, to, m:<user> for each that was merged into this one, with the names of its
--                                                    merges; while it is being erased to <user>, ms e, ik the name of the erasure, up
--                                                    that time, and still m:<user>
-- KEYS[4...] seq, ids, shown and the states of every model
-- ARGV    tenant, user, time (unix ms) up to which events are refused at least, how long the tombstone stays (ms), a new name for this
--         erasure, then users who are known to lead here, each with the name of its merge, first the one that was asked for
-- Returns {events that the user has had, time up to which events are refused from now on, 1 if there are others to be forgotten};
--         {-1, 0, 0} if it leads to another user, or is being erased, or does not know of the first of those merges: they were parted
--         since, and who is here now may be somebody else; nothing is done

-- A meta that is damaged says nothing, and goes.
local kind = redis.call('TYPE', KEYS[3])['ok']
local sound = kind == 'hash' or kind == 'none'
if sound and redis.call('HEXISTS', KEYS[3], 'to') == 1 then
  return { -1, 0, 0 }
end
if sound and ARGV[6] and not knows(KEYS[3], ARGV[6], ARGV[7]) then return { -1, 0, 0 } end

-- An event that is dated in the future of its erasure, as far as clocks may be wrong, must not come back either: not when the erasure
-- is repeated, and not when that is done by a host whose clock is behind.
local latest = sound and tonumber(redis.call('HGET', KEYS[3], 'l')) or 0
local before = tonumber(redis.pcall('GET', KEYS[1])) or 0 -- of another type: as good as none
local upto = string.format('%.0f', math.max(tonumber(ARGV[3]), latest, before))

local others = {}
local fields = sound and redis.call('HGETALL', KEYS[3]) or {}
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 2) == 'm:' then others[fields[i]] = fields[i + 1] end
end
for i = 6, #ARGV, 2 do
  local mark = 'm:' .. ARGV[i]
  others[mark] = (others[mark] and others[mark] .. ' ' or '') .. ARGV[i + 1]
end

redis.call('XLEN', KEYS[2]) -- of another type, it is met before anything is done: an error in the middle undoes nothing
local appended = sound and tonumber(redis.call('HGET', KEYS[3], 'n')) or 0
redis.call('DEL', unpack(KEYS, 3))
redis.call('SET', KEYS[1], upto, 'PX', ARGV[4])
redis.call('XADD', KEYS[2], '*', 'k', 'x', 't', ARGV[1], 'u', ARGV[2], 'g', upto, 'p', '')
if not next(others) then
  return { appended, tonumber(upto), 0 }
end
redis.call('HSET', KEYS[3], 'to', ARGV[2], 'ms', 'e', 'ik', ARGV[5], 'up', upto)
for mark, merges in pairs(others) do redis.call('HSET', KEYS[3], mark, merges) end
return { appended, tonumber(upto), 1 }
