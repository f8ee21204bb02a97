-- Store a new version of what has a name, or forget it.
--
-- KEYS[1] lw:<tenant>:<kind>                hash  name, percent-encoded -> "version JSON" of the latest
-- KEYS[2] lw:{lw:<tenant>:<kind>}:versions  hash  name:version -> the same of each version that is kept;
--                                                 "" -> the highest version of all that were forgotten
-- ARGV    name; to store: JSON, how many versions are kept of one, how many names there may be
-- Returns the version, nil if there are too many names; to forget: 1, or 0 if there is none

local name = ARGV[1]
local found = redis.call('HGET', KEYS[1], name)
local version, there = string.match(found or '', '^(%d+) (.*)$')
if version and #version > 15 then version, there = nil, nil end
version = tonumber(version)
local forgotten = tonumber(redis.call('HGET', KEYS[2], '') or '0')
local kept = {}
if found and (not version or not ARGV[2]) then
  for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
    if string.sub(field, 1, #name + 1) == name .. ':' then kept[#kept + 1] = field end
  end
end
if found and not version then -- it is damaged, and the versions that are kept know how far it had come
  version = forgotten
  for _, field in ipairs(kept) do version = math.max(version, tonumber(string.sub(field, #name + 2)) or 0) end
end
if not ARGV[2] then
  if redis.call('HDEL', KEYS[1], name) == 0 then return 0 end
  for _, field in ipairs(kept) do redis.call('HDEL', KEYS[2], field) end
  -- What was made under a version names it for as long as an archive lasts: it must not become another one's.
  redis.call('HSET', KEYS[2], '', string.format('%.0f', math.max(forgotten, version)))
  return 1
end
if there == ARGV[2] then return version end
if not found and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then return false end
version = (version or forgotten) + 1
local text = string.format('%.0f', version)
redis.call('HSET', KEYS[1], name, text .. ' ' .. ARGV[2])
redis.call('HSET', KEYS[2], name .. ':' .. text, text .. ' ' .. ARGV[2])
redis.call('HDEL', KEYS[2], name .. ':' .. string.format('%.0f', version - tonumber(ARGV[3])))
return version
