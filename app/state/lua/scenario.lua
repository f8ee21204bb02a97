-- Store a new version of a scenario, or forget it.
--
-- KEYS[1] lw:<tenant>:scenarios             hash  name, percent-encoded -> "version JSON" of the latest
-- KEYS[2] lw:{lw:<tenant>:scenarios}:versions  hash  name:version -> the same of each version that is kept
-- ARGV    name; to store: JSON, how many versions are kept of one, how many scenarios there may be
-- Returns the version, nil if there are too many scenarios; to forget: 1, or 0 if there is none

local name = ARGV[1]
local version, there = string.match(redis.call('HGET', KEYS[1], name) or '', '^(%d+) (.*)$')
version = tonumber(version)
if not ARGV[2] then
  if not version then return 0 end
  redis.call('HDEL', KEYS[1], name)
  for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
    if string.sub(field, 1, #name + 1) == name .. ':' then redis.call('HDEL', KEYS[2], field) end
  end
  return 1
end
if there == ARGV[2] then return version end
if not version and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then return false end
version = (version or 0) + 1
local text = string.format('%.0f', version)
redis.call('HSET', KEYS[1], name, text .. ' ' .. ARGV[2])
redis.call('HSET', KEYS[2], name .. ':' .. text, text .. ' ' .. ARGV[2])
redis.call('HDEL', KEYS[2], name .. ':' .. string.format('%.0f', version - tonumber(ARGV[3])))
return version
