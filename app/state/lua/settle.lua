-- All who were merged into a user that is being erased are forgotten: leave a receipt of it, if there is none yet, and let the list of
-- them go after a while, even if nobody comes any more.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>     hash    to <user>, ms e, ik, see erase.lua
-- KEYS[2] lw:{pp}:<tenant>:receipt:<name>  string  what was forgotten, see erasing.py
-- ARGV    user, name of the erasure, the receipt, how long both stay (ms)
-- Returns 1, or 0 if that erasure is over

local found = redis.call('HMGET', KEYS[1], 'to', 'ms', 'ik')
if found[1] ~= ARGV[1] or found[2] ~= 'e' or found[3] ~= ARGV[2] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[4]) -- before the other: a Redis that is full takes what is new after something else alone
redis.call('SET', KEYS[2], ARGV[3], 'NX', 'PX', ARGV[4])
return 1
