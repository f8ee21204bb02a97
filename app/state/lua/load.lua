-- Load one user: counters, the stored state if it can be continued, and the events that it does not cover.
--
-- KEYS[1] lw:{pp}:<tenant>:seq:<user>               list
-- KEYS[2] lw:{pp}:<tenant>:meta:<user>              hash    n, e, f, l, a (attributes, MessagePack)
-- KEYS[3] lw:{pp}:<tenant>:state:<model_id>:<user>  string  see codec.py: prefix 1-8, epoch 9-16, base 17-24, applied 25-32 (u64)
-- ARGV    the 8 bytes that a state of the current format begins with
-- Returns nil for an unknown user, else {n, stored, e, f, l, a, state or nil, index of the first tail event, tail}

local meta = redis.call('HMGET', KEYS[2], 'n', 'e', 'f', 'l', 'a')
if not meta[2] then
  return false
end
local appended = tonumber(meta[1]) or 0
local stored = redis.call('LLEN', KEYS[1])
local start = appended - stored -- of a trimmed sequence: the first event that is still there

local state = redis.call('GET', KEYS[3])
if state then
  local usable = #state >= 40 and string.sub(state, 1, 8) == ARGV[1] and string.sub(state, 9, 16) == meta[2]
  local applied = usable and struct.unpack('<I8', state, 25)
  -- Behind `start` there would be a gap between state and tail, and past `appended` the state knows events that are not there.
  if usable and applied >= start and applied <= appended then
    start = applied
  else
    state = false
  end
end

local tail = {}
if start < appended then
  tail = redis.call('LRANGE', KEYS[1], start - appended, -1)
end
return { appended, stored, meta[2], meta[3], meta[4], meta[5], state, start, tail }
