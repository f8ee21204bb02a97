-- Change items of the live catalogue, all or none.
--
-- KEYS[1] lw:<tenant>:items              hash    item id -> "version since JSON": since when it has been there (unix ms);
--                                             of a deleted item "version since -JSON", what was said of it before, or nothing
--                                             behind the "-"; the empty id: "last-version epoch"
-- KEYS[2] lw:{lw:<tenant>:items}:changes  stream  "<version>-0" -> id: the item that was changed
-- ARGV    how many changes the stream keeps, an epoch for a hash that is new, unix ms, then per change: item id, JSON ('' deletes),
--         the version that the item must have (0: nothing was said of it; -1: any)
-- Returns the version of the last change; nil, and nothing is changed, if an item has another version than it must

for at = 4, #ARGV, 3 do
  local must = tonumber(ARGV[at + 2])
  if must >= 0 then
    local there = string.match(redis.call('HGET', KEYS[1], ARGV[at]) or '0 ', '^(%d+) ')
    if tonumber(there) ~= must then return false end
  end
end
local version, epoch = string.match(redis.call('HGET', KEYS[1], '') or '', '^(%d+) (.*)$')
local last = string.format('%.0f', (version or 0) + (#ARGV - 3) / 3)
-- This one first: a Redis that is full refuses a first write that takes memory, and nothing after it.
redis.call('HSET', KEYS[1], '', last .. ' ' .. (epoch or ARGV[2]))
if not version then redis.call('DEL', KEYS[2]) end -- of a hash that was lost: its versions would be in the way
version = version or 0
for at = 4, #ARGV, 3 do
  version = version + 1
  local text = string.format('%.0f', version)
  local since, before = string.match(redis.call('HGET', KEYS[1], ARGV[at]) or '', '^%d+ (%d+) %-?(.*)$')
  local said = ARGV[at + 1]
  if said == '' then
    said = '-' .. (before or '')
  elseif not since or string.find(redis.call('HGET', KEYS[1], ARGV[at]), '^%d+ %d+ %-') then
    since = ARGV[3] -- it is new, or comes back
  end
  redis.call('HSET', KEYS[1], ARGV[at], text .. ' ' .. (since or ARGV[3]) .. ' ' .. said)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], text .. '-0', 'id', ARGV[at])
end
return version
