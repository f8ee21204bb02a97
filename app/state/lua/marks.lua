-- Give a user fields of its meta that say who was merged into it, and what has been done with it, unless it was merged into another one or
-- is being erased.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>  hash  m:<user> with the names of merges, separated by blanks, and others
-- ARGV    another user who must be known here ('': nobody), by this merge, then field, value, ...; to a field m:<user> the value is added
-- Returns 1 if it is done, 0 if not

if redis.call('HEXISTS', KEYS[1], 'to') == 1 or (ARGV[1] ~= '' and not knows(KEYS[1], ARGV[1], ARGV[2])) then
  return 0
end
for i = 3, #ARGV, 2 do
  local value = ARGV[i + 1]
  if string.sub(ARGV[i], 1, 2) == 'm:' then
    local all = redis.call('HGET', KEYS[1], ARGV[i])
    for merge in string.gmatch(all and value or '', '%S+') do
      if not is_among(all, merge) then all = all .. ' ' .. merge end
    end
    value = all or value
  end
  redis.call('HSET', KEYS[1], ARGV[i], value)
end
return 1
