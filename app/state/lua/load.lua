-- Load one user: counters, the stored state if it can be continued, and the events that it does not cover.
--
-- KEYS[1] lw:{pp}:<tenant>:seq:<user>               list
-- KEYS[2] lw:{pp}:<tenant>:meta:<user>              hash    n, e, f, l, a (attributes, MessagePack), to, ms
-- KEYS[3] lw:{pp}:<tenant>:state:<model_id>:<user>  string  see codec.py: prefix 1-6, epoch 9-16, base 17-24, applied 25-32 (u64), bytes behind the header 41-44
-- ARGV    the 6 bytes that a state of the current format begins with, epoch (or '') and applied of a state that the caller holds
--         already, most events of the tail (0: all), how long a state is kept (ms): one that is read has at least half of that left
-- Returns nil for an unknown user, {-1, user id that this one was merged into, state of the merge},
--         else {n, stored, e, f, l, a, state, index of the first tail event, tail}, where state is nil if there is none to be
--         continued and 1 if the caller's own can be: it is not sent again

local meta = redis.call('HMGET', KEYS[2], 'n', 'e', 'f', 'l', 'a', 'to', 'ms')
if meta[6] then
  return { -1, meta[6], meta[7] or '' }
end
if not meta[2] then
  return false
end
local appended = tonumber(meta[1]) or 0
local stored = redis.call('LLEN', KEYS[1])
local start = math.max(0, appended - stored) -- of a trimmed sequence: the first event that is still there

local state
local held = ARGV[2] == meta[2] and tonumber(ARGV[3])
if held and held >= start and held <= appended then
  state, start = 1, held
else
  state = redis.pcall('GET', KEYS[3]) -- of another type: as good as none
  if type(state) == 'table' then state = false end
  if state then
    local usable = #state >= 48 and string.sub(state, 1, 6) == ARGV[1] and string.sub(state, 9, 16) == meta[2]
      and #state == 48 + struct.unpack('<I4', state, 41)
    local applied = usable and struct.unpack('<I8', state, 25)
    -- Behind `start` there would be a gap between state and tail, and past `appended` the state knows events that are not there.
    if usable and applied >= start and applied <= appended then
      start = applied
      -- Not with every read, which would be a write each; and a Redis that takes none can be read all the same.
      if redis.call('PTTL', KEYS[3]) < ARGV[5] / 2 then redis.pcall('PEXPIRE', KEYS[3], ARGV[5]) end
    else
      state = false
    end
  end
end

local tail = {}
if start < appended then
  local most = tonumber(ARGV[4])
  local stop = (most > 0 and most < appended - start) and start - appended + most - 1 or -1
  tail = redis.call('LRANGE', KEYS[1], start - appended, stop)
end
return { appended, stored, meta[2], meta[3], meta[4], meta[5], state, start, tail }
