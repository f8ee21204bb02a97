-- Forget one of the users who were merged into one that is being erased: all that is kept of it goes, and a tombstone refuses what happened
-- before. Until all of them are forgotten it says that it is being erased, and with whom. A second time changes nothing.
--
-- KEYS[1] lw:{pp}:<tenant>:gone:<user hash>  string  time (unix ms) up to which events of the user are refused
-- KEYS[2] lw:{pp}:log                        stream  k x, see erase.lua
-- KEYS[3] lw:{pp}:<tenant>:meta:<user>       hash    n, l, to, ms, ik, into, ia, see alias.lua; then to who is erased, ms e, n, ik and
--                                                    m:<user> as before, up that time
-- KEYS[4...] seq, ids, shown and the states of every model
-- ARGV    tenant, user, time (unix ms) up to which events are refused at least, how long the tombstone stays (ms), who is being erased,
--         the names of the merges by which this user is known there
-- Returns, also the second time, {events that the user has had, time up to which events are refused from now on, a field m:<user> for
--         each who was merged into this one, and its value}; {-1, 0, {}} if it did not go by one of these merges, and nothing is
--         done: the mark is of an earlier life, and who has the name now is another one. Nor will it: an intent to go by one of them
--         is taken back

local kind = redis.call('TYPE', KEYS[3])['ok']
local meta = kind == 'hash' and redis.call('HMGET', KEYS[3], 'to', 'ms', 'ik', 'up', 'n', 'l') or {}
local merge = meta[3] or '1' -- a merge that was restored from an archive has no other name
if not is_among(ARGV[6], merge) then
  return { -1, 0, {} }
end
if not meta[1] then
  if meta[3] then redis.call('HDEL', KEYS[3], 'into', 'ia', 'ik') end
  return { -1, 0, {} }
end
local others = {}
local fields = redis.call('HGETALL', KEYS[3])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 2) == 'm:' then
    others[#others + 1], others[#others + 2] = fields[i], fields[i + 1]
  end
end
local appended, upto = tonumber(meta[5]) or 0, meta[4]
if meta[2] ~= 'e' then
  local before = tonumber(redis.pcall('GET', KEYS[1])) or 0 -- of another type: as good as none
  upto = string.format('%.0f', math.max(tonumber(ARGV[3]), tonumber(meta[6]) or 0, before))
  redis.call('XLEN', KEYS[2]) -- of another type, it is met before anything is done: an error in the middle undoes nothing
  redis.call('DEL', unpack(KEYS, 3))
  redis.call('SET', KEYS[1], upto, 'PX', ARGV[4])
  redis.call('XADD', KEYS[2], '*', 'k', 'x', 't', ARGV[1], 'u', ARGV[2], 'g', upto, 'p', '')
  redis.call('HSET', KEYS[3], 'to', ARGV[5], 'ms', 'e', 'ik', merge, 'up', upto, 'n', appended)
  for i = 1, #others, 2 do redis.call('HSET', KEYS[3], others[i], others[i + 1]) end
end
return { appended, tonumber(upto), others }
