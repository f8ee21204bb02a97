-- Trim a partition's log of what is archived, if it is still the log that was read.
--
-- KEYS[1] lw:{pp}:log           stream
-- KEYS[2] lw:{pp}:log-identity  string  identity (16 hex digits), and up to where the log was trimmed, see `Mark` in archive/log.py
-- ARGV    the identity, the stream ids of the first and the last entry that are archived, the id after the last
-- Returns 1 if it is trimmed, 0 if not: it is another log, it begins with another entry, or has lost the last one

if string.sub(redis.call('GET', KEYS[2]) or '', 1, 16) ~= ARGV[1] then
  return 0
end
-- Entries come at the end alone. One before the first was never read, nor what stands where the last has gone.
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first or first[1] ~= ARGV[2] or #redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3]) == 0 then
  return 0
end
redis.call('XTRIM', KEYS[1], 'MINID', ARGV[4])
redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. ARGV[1] .. ' ' .. ARGV[3])
return 1
