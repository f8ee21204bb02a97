-- Append events of one user, atomically: dedupe, sequence, bound, counters, event log.
--
-- KEYS[1] lw:{pp}:<tenant>:seq:<user>   list    packed events in arrival order, at most `max_sequence`
-- KEYS[2] lw:{pp}:<tenant>:meta:<user>  hash    n appended so far, e epoch (8 bytes), f/l smallest and largest time (unix ms)
-- KEYS[3] lw:{pp}:<tenant>:ids:<user>   string  8-byte hashes of the last event ids, oldest first
-- KEYS[4] lw:{pp}:log                   stream  t tenant, u user, e packed event
-- ARGV    tenant, user, max_sequence, dedupe_window (ids), log_max_length (entries), epoch for a new user (8 random bytes),
--         then per event: packed event, time (unix ms), hash of its event id (8 bytes, or empty: never a duplicate)
-- Returns {events appended to this user so far, one '1' (stored) or '0' (duplicate) per event}
--
-- Why a string of hashes: 8 bytes an id (a sorted set takes about 100, a hash table 70), searched by one memchr-like scan of at
-- most 8 KB at the default window, and growing by an APPEND of 8 bytes, which is all the append-only file has to take.

local max_sequence, window = tonumber(ARGV[3]), tonumber(ARGV[4])
local fixed = 6
local count = (#ARGV - fixed) / 3

local known = ''
for i = 1, count do
  if window > 0 and ARGV[fixed + 3 * i] ~= '' then
    known = redis.call('GETRANGE', KEYS[3], -8 * window, -1)
    break
  end
end

-- The position of an id in `known`, counted in ids, or nil. A match across two neighbouring ids is no match.
local function position(id, from)
  local at = string.find(known, id, 8 * from + 1, true)
  while at and (at - 1) % 8 ~= 0 do
    at = string.find(known, id, at + 1, true)
  end
  return at
end

local old = #known / 8
local new_ids, ordinal = {}, {}
local packed, flags = {}, {}
local first, last
for i = 1, count do
  local event, time, id = ARGV[fixed + 3 * i - 2], tonumber(ARGV[fixed + 3 * i - 1]), ARGV[fixed + 3 * i]
  local fresh = true
  if id ~= '' and window > 0 then
    -- The window slides within a batch as it would have between calls: what this batch has added pushes old ids out.
    local seen = ordinal[id]
    if seen and #new_ids - seen < window then
      fresh = false
    elseif #new_ids < window and position(id, math.max(0, old + #new_ids - window)) then
      fresh = false
    else
      new_ids[#new_ids + 1] = id
      ordinal[id] = #new_ids
    end
  end
  if fresh then
    packed[#packed + 1] = event
    if not first or time < first then first = time end
    if not last or time > last then last = time end
  end
  flags[i] = fresh and '1' or '0'
end

local meta = redis.call('HMGET', KEYS[2], 'n', 'f', 'l', 'e')
local total = (tonumber(meta[1]) or 0) + #packed
if #packed == 0 then
  return { total, table.concat(flags) }
end

local length
for from = 1, #packed, 1000 do -- unpack() is limited by Lua's C stack
  length = redis.call('RPUSH', KEYS[1], unpack(packed, from, math.min(from + 999, #packed)))
end
if length > max_sequence then
  -- LTRIM's ends are inclusive: -max_sequence to -1 keeps exactly max_sequence events.
  redis.call('LTRIM', KEYS[1], -max_sequence, -1)
end

if meta[2] then first = math.min(first, tonumber(meta[2])) end
if meta[3] then last = math.max(last, tonumber(meta[3])) end
-- Numbers go out as %.0f: tostring() would write 1e+15 for a large one.
redis.call('HSET', KEYS[2], 'n', string.format('%.0f', total), 'f', string.format('%.0f', first), 'l', string.format('%.0f', last))
if not meta[4] then
  redis.call('HSET', KEYS[2], 'e', ARGV[6])
end

if #new_ids > 0 then
  local added = table.concat(new_ids)
  local bytes = redis.call('APPEND', KEYS[3], added)
  -- Rewriting the string costs the append-only file 8 KB, so it may grow a quarter past the window before it is cut.
  -- Only the last `window` ids are ever looked at, so the cut changes no answer.
  if bytes > 10 * window then
    redis.call('SET', KEYS[3], string.sub(known .. added, -8 * window))
  end
end

-- The approximate bound keeps memory finite for now; once events are archived, the archiver trims what it has committed.
for i = 1, #packed do
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 't', ARGV[1], 'u', ARGV[2], 'e', packed[i])
end
return { total, table.concat(flags) }
