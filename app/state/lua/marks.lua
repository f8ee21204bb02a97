-- Give a user fields of its meta that say what has been done with it, unless it was erased, or merged into another one.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>       hash
-- KEYS[2] lw:{pp}:<tenant>:gone:<user hash>  string  when the user was erased
-- ARGV    expected tombstone (or ''), then field, value, ...
-- Returns 1 if it is done, 0 if not

if redis.call('HEXISTS', KEYS[1], 'to') == 1 or (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then
  return 0
end
for i = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return 1
