-- Replace a user's sequence by a history, under a new epoch. Neither the event log nor any popularity is touched.
--
-- KEYS[1] lw:{pp}:<tenant>:seq:<user>   list    packed events, oldest first
-- KEYS[2] lw:{pp}:<tenant>:meta:<user>  hash    n, e, f, l, a
-- KEYS[3] lw:{pp}:<tenant>:ids:<user>   string  8-byte hashes of the last event ids, oldest first
-- ARGV    events in the whole history, epoch (8 random bytes), smallest and largest time (unix ms), attributes (MessagePack),
--         the ids string, then the packed events that are kept
-- Returns 1

redis.call('DEL', KEYS[1], KEYS[3])
for from = 7, #ARGV, 1000 do -- unpack() is limited by Lua's C stack
  redis.call('RPUSH', KEYS[1], unpack(ARGV, from, math.min(from + 999, #ARGV)))
end
redis.call('HSET', KEYS[2], 'n', ARGV[1], 'e', ARGV[2], 'f', ARGV[3], 'l', ARGV[4], 'a', ARGV[5])
if ARGV[6] ~= '' then
  redis.call('SET', KEYS[3], ARGV[6])
end
return 1
