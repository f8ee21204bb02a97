-- Store a new version of a scenario, or forget it.
--
-- KEYS[1] lw:<tenant>:scenarios  hash  name -> "version JSON" of the latest, name:version -> the same of each that is kept, both
--                                      percent-encoded; the empty name: how many there are
-- ARGV    name; to store: JSON, how many versions are kept of one, how many scenarios there may be
-- Returns the version, nil if there are too many scenarios; to forget: 1, or 0 if there is none

local name = ARGV[1]
local version, there = string.match(redis.call('HGET', KEYS[1], name) or '', '^(%d+) (.*)$')
version = tonumber(version)
if not ARGV[2] then
  if not version then return 0 end
  local fields = redis.call('HKEYS', KEYS[1])
  for _, field in ipairs(fields) do
    if field == name or string.sub(field, 1, #name + 1) == name .. ':' then redis.call('HDEL', KEYS[1], field) end
  end
  redis.call('HINCRBY', KEYS[1], '', -1)
  return 1
end
if there == ARGV[2] then return version end
if not version then
  if tonumber(redis.call('HGET', KEYS[1], '') or 0) >= tonumber(ARGV[4]) then return false end
  redis.call('HINCRBY', KEYS[1], '', 1)
  version = 0
end
version = version + 1
local text = string.format('%.0f', version)
redis.call('HSET', KEYS[1], name, text .. ' ' .. ARGV[2], name .. ':' .. text, text .. ' ' .. ARGV[2])
redis.call('HDEL', KEYS[1], name .. ':' .. string.format('%.0f', version - tonumber(ARGV[3])))
return version
