-- Store a state by compare-and-set: folds may race, but never regress and never bring an older epoch back.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>              hash    n, e
-- KEYS[2] lw:{pp}:<tenant>:state:<model_id>:<user>  string  see codec.py: prefix 1-8, epoch 9-16, base 17-24, applied 25-32 (u64)
-- ARGV    the state, header included
-- Returns 1 if it was stored, 0 if it belongs to another epoch or is not ahead of what is stored. What is damaged (cut short, or
-- ahead of all that was ever appended) is ahead of nothing: load.lua and the fold would never use it.

local state = ARGV[1]
local epoch, applied = string.sub(state, 9, 16), struct.unpack('<I8', state, 25)
local meta = redis.call('HMGET', KEYS[1], 'n', 'e')
local appended = tonumber(meta[1]) or 0
if meta[2] ~= epoch or applied > appended then
  return 0
end
local stored = redis.call('GETRANGE', KEYS[2], 0, 31) -- the header up to `applied`, not the kilobytes behind it
if redis.call('STRLEN', KEYS[2]) == #state and string.sub(stored, 1, 16) == string.sub(state, 1, 16) then
  local there = struct.unpack('<I8', stored, 25)
  if there >= applied and there <= appended then
    return 0
  end
end
redis.call('SET', KEYS[2], state)
return 1
