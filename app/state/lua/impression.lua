-- Store that a list was shown, once: alias, tombstone, dedupe, what the user was shown of late, event log.
--
-- KEYS[1] lw:{pp}:<tenant>:shown:<user>      string  u16 number of ids, hashes of the last lists that were shown (8 bytes each, the
--                                                    latest last), the last showings (12 bytes each, the latest last): key of an
--                                                    item (8 bytes), when (u32, unix seconds); the first may be an older one that is
--                                                    dated ahead of all others. Of nobody: the ids alone
-- KEYS[2] lw:{pp}:<tenant>:meta:<user>       hash    to, ms, ik after a merge, m:<user> names of the merges by which others came
-- KEYS[3] lw:{pp}:<tenant>:gone:<user hash>  string  when the user was erased (unix ms)
-- KEYS[4] lw:{pp}:log                        stream  k v, t tenant, u user ('': nobody), v packed impression
-- ARGV    tenant, user, packed impression, time (unix ms), hash of the list's id, showings (12 bytes each), most ids, most showings,
--         how long what was shown is remembered (ms), log_max_length (0: no bound), time (unix ms) up to which impressions are refused
--         (of an erased user who was merged into this one since; -1: none), another user who is meant and was merged into this one
--         (or ''), by this merge
-- Returns '1' stored, '0' duplicate or 'g' of before the erasure; or {-1, user id that this one was merged into, state of the merge,
--         time up to which this one was erased, name of the merge} and nothing is done; or {-2} if that merge of the other user is
--         not known here, and nothing is done

local meta = redis.call('HMGET', KEYS[2], 'to', 'ms', 'ik')
if meta[1] then
  return { -1, meta[1], meta[2] or '', redis.call('GET', KEYS[3]) or '-1', meta[3] or '1' }
end
if ARGV[12] ~= '' and not knows(KEYS[2], ARGV[12], ARGV[13]) then return { -2 } end
if tonumber(ARGV[4]) <= math.max(tonumber(redis.call('GET', KEYS[3])) or -1, tonumber(ARGV[11])) then
  return 'g'
end

local raw, ids, showings = redis.call('GET', KEYS[1]) or '', '', ''
if #raw >= 2 then
  local size = 2 + 8 * struct.unpack('<I2', raw)
  if size <= #raw and (#raw - size) % 12 == 0 then
    ids, showings = string.sub(raw, 3, size), string.sub(raw, size + 1)
  end
end
local at = string.find(ids, ARGV[5], 1, true)
while at do -- a match across two neighbours is no match
  if at % 8 == 1 then return '0' end
  at = string.find(ids, ARGV[5], at + 1, true)
end

-- First what can be refused, by an access list or for its type: an error in the middle undoes nothing.
if ARGV[10] ~= '0' then
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[10], '*', 'k', 'v', 't', ARGV[1], 'u', ARGV[2], 'v', ARGV[3])
else
  redis.call('XADD', KEYS[4], '*', 'k', 'v', 't', ARGV[1], 'u', ARGV[2], 'v', ARGV[3])
end
ids = string.sub(ids .. ARGV[5], -8 * tonumber(ARGV[7]))
local most = 12 * tonumber(ARGV[8])
showings = most > 0 and showings .. ARGV[6] or ''
if #showings > most then
  -- A showing that is dated ahead of this one stays, in the place of the first: an erasure must know up to when to refuse.
  local latest, ahead = math.floor(tonumber(ARGV[4]) / 1000), ''
  for i = 1, #showings - most + 12, 12 do
    local at = struct.unpack('<I4', showings, i + 8)
    if at > latest then latest, ahead = at, string.sub(showings, i, i + 11) end
  end
  showings = ahead .. string.sub(showings, #ahead - most)
end
redis.call('SET', KEYS[1], struct.pack('<I2', #ids / 8) .. ids .. showings, 'PX', ARGV[9])
return '1'
