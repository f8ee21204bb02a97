-- Change items of the live catalogue, all or none.
--
-- KEYS[1] lw:<tenant>:items              hash    item id -> "version since JSON": since when it has been there (unix ms);
--                                             of a deleted item "version since -JSON", what was said of it before, or nothing
--                                             behind the "-"; the empty id: "last-version epoch"
-- KEYS[2] lw:{lw:<tenant>:items}:changes  stream  "<version>-0" -> id: the item that was changed
-- KEYS[3] lw:{lw:<tenant>:items}:kinds    hash    name of an attribute -> its type, the same for every item for ever
-- ARGV    how many changes the stream keeps, an epoch for a hash that is new, unix ms, how many items there may be, how many names of
--         attributes; how many attributes these items have, then per attribute: name, type; then per change: item id, JSON ('' deletes),
--         the version that the item must have (0: nothing was said of it; -1: any)
-- Returns the version of the last change; or what was in the way, and nothing is changed then: {'version'} an item has another
--         version than it must, {'kind', name, its type}, {'names'} too many names, {'items'} too many items

local named = tonumber(ARGV[6])
local first = 7 + 2 * named
for at = first, #ARGV, 3 do
  local must = tonumber(ARGV[at + 2])
  if must >= 0 then
    local there = string.match(redis.call('HGET', KEYS[1], ARGV[at]) or '0 ', '^(%d+) ')
    if tonumber(there) ~= must then return { 'version' } end
  end
end
local new = {}
for at = 7, first - 1, 2 do
  local kind = redis.call('HGET', KEYS[3], ARGV[at])
  if not kind then
    new[#new + 1] = ARGV[at]
    new[#new + 1] = ARGV[at + 1]
  elseif kind ~= ARGV[at + 1] then
    return { 'kind', ARGV[at], kind }
  end
end
if #new > 0 and redis.call('HLEN', KEYS[3]) + #new / 2 > tonumber(ARGV[5]) then return { 'names' } end
local count = math.max(0, redis.call('HLEN', KEYS[1]) - 1)
for at = first, #ARGV, 3 do
  if ARGV[at + 1] ~= '' and redis.call('HEXISTS', KEYS[1], ARGV[at]) == 0 then count = count + 1 end
end
if count > tonumber(ARGV[4]) then return { 'items' } end
local version, epoch = string.match(redis.call('HGET', KEYS[1], '') or '', '^(%d+) (.*)$')
local last = string.format('%.0f', (version or 0) + (#ARGV - first + 1) / 3)
-- This one first: a Redis that is full refuses a first write that takes memory, and nothing after it.
redis.call('HSET', KEYS[1], '', last .. ' ' .. (epoch or ARGV[2]))
if not version then redis.call('DEL', KEYS[2]) end -- of a hash that was lost: its versions would be in the way
if #new > 0 then redis.call('HSET', KEYS[3], unpack(new)) end
version = version or 0
for at = first, #ARGV, 3 do
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
