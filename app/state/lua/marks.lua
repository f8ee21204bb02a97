-- Give a user fields of its meta that say what has been done with it, unless it was merged into another one.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>  hash
-- ARGV    field, value, ...
-- Returns '' if it is done, else the user that this one was merged into

local to = redis.call('HGET', KEYS[1], 'to')
if to then
  return to
end
for i = 1, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return ''
