-- Write a user's sequence anew, under a new epoch: a bulk import, a merge. The caller has read the user, worked out the new
-- sequence (sorted by time), and says what it was worked out from; if that has changed since, nothing is done.
--
-- KEYS[1] lw:{pp}:<tenant>:seq:<user>        list    packed events, oldest first
-- KEYS[2] lw:{pp}:<tenant>:meta:<user>       hash    n, e, f, l, a, d and cut (see expire.lua), one field for each import or merge that is
--                                                    done, and m:<user> for each user that was merged into this one, with the
--                                                    name of that merge
-- KEYS[3] lw:{pp}:<tenant>:ids:<user>        string  ring of the hashes of the last event ids, see append.lua
-- KEYS[4] lw:{pp}:log                        stream  k s: the sequence is rewritten (o: the user that the events come from, c: how
--                                                    many follow, i: the mark, a: attributes), then k h: an event that is new here
-- ARGV    tenant, user, expected epoch ('' for no user), expected n, new epoch, n, smallest and largest time (unix ms, or ''), attributes
--         (MessagePack, or '': unchanged), meta field that marks this rewrite (or ''), the user that the events come from (or ''),
--         ring ('' for none), log_max_length (0: no bound), 1 to write the log, number of arguments with the sequence,
--         number of new events, name of the merge (or ''), the sequence, at most 1000 packed events an argument, then packed event and event id of each new
--         event, as many an argument; each of these behind its length (u32, little-endian)
-- Returns 1 if it is done, 0 if the user has changed, 2 if this rewrite was done before

local meta = redis.call('HMGET', KEYS[2], 'n', 'e', 'to')
if ARGV[10] ~= '' and redis.call('HEXISTS', KEYS[2], ARGV[10]) == 1 then
  return 2
end
if meta[3] or (meta[2] or '') ~= ARGV[3] or (tonumber(meta[1]) or 0) ~= tonumber(ARGV[4]) then
  return 0
end
-- Not MessagePack: cmsgpack of Redis 6.2 does not know its type for bytes.
local function parts_of(packed)
  local parts, at = {}, 1
  while at <= #packed do
    parts[#parts + 1], at = struct.unpack('<I4c0', packed, at)
  end
  return parts
end

local last = 17 + tonumber(ARGV[15])
redis.call('DEL', KEYS[1], KEYS[3])
for i = 18, last do -- no more in one argument than unpack() can put on Lua's C stack
  redis.call('RPUSH', KEYS[1], unpack(parts_of(ARGV[i])))
end
redis.call('HSET', KEYS[2], 'n', ARGV[6], 'e', ARGV[5])
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[2], 'f', ARGV[7], 'l', ARGV[8])
end
if ARGV[9] ~= '' then
  redis.call('HSET', KEYS[2], 'a', ARGV[9])
end
if ARGV[10] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[10], '1')
end
if ARGV[11] ~= '' then
  redis.call('HSET', KEYS[2], 'm:' .. ARGV[11], ARGV[17])
end
if ARGV[12] ~= '' then
  redis.call('SET', KEYS[3], ARGV[12])
end
if ARGV[14] == '1' then
  local entry = redis.call('XADD', KEYS[4], '*', 'k', 's', 't', ARGV[1], 'u', ARGV[2], 'p', ARGV[5], 'c', ARGV[16], 'o', ARGV[11],
    'i', ARGV[10], 'a', ARGV[9])
  redis.call('HSET', KEYS[2], 'd', string.format('%d', math.floor(tonumber(string.match(entry, '^%d+')) / 86400000)))
  for i = last + 1, #ARGV do
    local parts = parts_of(ARGV[i])
    for j = 1, #parts, 2 do
      redis.call('XADD', KEYS[4], '*', 'k', 'h', 't', ARGV[1], 'u', ARGV[2], 'e', parts[j], 'i', parts[j + 1], 'n', '0', 'p', ARGV[5])
    end
  end
  if ARGV[13] ~= '0' then
    redis.call('HSET', KEYS[2], 'cut', '1')
    redis.call('XTRIM', KEYS[4], 'MAXLEN', '~', ARGV[13])
  end
end
return 1
