-- Append events of one user, atomically: alias, tombstone, dedupe, sequence, bound, counters, event log.
--
-- KEYS[1] lw:{pp}:<tenant>:seq:<user>        list    packed events in arrival order, at most `max_sequence`
-- KEYS[2] lw:{pp}:<tenant>:meta:<user>       hash    n appended so far, e epoch (8 bytes), f/l smallest and largest time (unix ms),
--                                                    to/ms/ik where this user went in a merge, m:<user> names of the merges by
--                                                    which others came, d day of the last record, cut (see expire.lua)
-- KEYS[3] lw:{pp}:<tenant>:ids:<user>        string  ring of the hashes of the last event ids, see below
-- KEYS[4] lw:{pp}:<tenant>:gone:<user hash>  string  when the user was erased (unix ms)
-- KEYS[5] lw:{pp}:log                        stream  k e, t tenant, u user, e packed event, i event id, n number, p epoch
-- ARGV    tenant, user, max_sequence, dedupe_window (ids), log_max_length (entries; 0: what is not archived stays), epoch for a new
--         user (8 random bytes), time (unix ms) up to which events are refused (of an erased user who was merged into this one
--         since; -1: none), another user who is meant and was merged into this one (or ''), by this merge, then per event: packed
--         event, time (unix ms), hash of its event id (8 bytes, or empty: never a duplicate), event id
-- Returns {events appended to this user so far, per event '1' stored, '0' duplicate or 'g' of before the erasure, epoch,
--         attributes (MessagePack) or nil},
--         or {-1, user id that this one was merged into, state of the merge, time up to which this one was erased, name of the merge}
--         and nothing is done; or {-2} if that merge of the other user is not known here, and nothing is done
--
-- The ring: u32 slots, u32 zero, u64 ids so far, then 8 bytes a slot; the id with ordinal o (from 0) is in slot o mod slots. 8 bytes an
-- id (a sorted set takes about 100, a hash table 70), searched by one memchr-like scan of 8 KB at the default window, and an id costs
-- the append-only file some 100 bytes of commands, not the 8 KB of a rewrite. Redis gives a string that grows twice the memory it
-- needs, so the ring is written whole once, when it is full.

local max_sequence, window = tonumber(ARGV[3]), tonumber(ARGV[4])
local fixed = 9
local count = (#ARGV - fixed) / 4

local meta = redis.call('HMGET', KEYS[2], 'n', 'f', 'l', 'e', 'to', 'ms', 'a', 'd', 'cut', 'ik')
if meta[5] then
  return { -1, meta[5], meta[6] or '', redis.call('GET', KEYS[4]) or '-1', meta[10] or '1' }
end
if ARGV[8] ~= '' and not knows(KEYS[2], ARGV[8], ARGV[9]) then return { -2 } end -- an erasure has parted them since
local total, epoch = tonumber(meta[1]) or 0, meta[4] or ARGV[6]
local erased_at = math.max(tonumber(redis.call('GET', KEYS[4])) or -1, tonumber(ARGV[7]))

local ring, seen = '', 0 -- `seen` ids so far
local moved = false -- the ring has another size than before, or is new
if window > 0 then
  for i = 1, count do
    if ARGV[fixed + 4 * i - 1] ~= '' then
      ring = redis.call('GET', KEYS[3]) or ''
      break
    end
  end
  if #ring >= 16 then
    local slots, _, ids = struct.unpack('<I4I4I8', ring)
    seen = ids
    if slots ~= window then -- the setting was changed: what is still there, oldest first
      local first = seen > slots and seen % slots or 0
      local there = string.sub(ring, 17 + 8 * first) .. string.sub(ring, 17, 16 + 8 * first)
      there = string.sub(there, -8 * window)
      ring, seen, moved = string.sub(ring, 1, 16) .. there, #there / 8, true
    end
  else
    ring, moved = string.rep('\0', 16), true
  end
end

local fresh_ids, ordinal = {}, {}

-- Whether an id is among the last `window` ones. A match across two neighbouring slots is no match.
local function known(id)
  local ids = seen + #fresh_ids
  if ordinal[id] and ordinal[id] >= ids - window then
    return true
  end
  local at = string.find(ring, id, 17, true)
  while at do
    local slot = (at - 17) / 8
    if slot % 1 == 0 and seen - 1 - (seen - 1 - slot) % window >= ids - window then
      return true
    end
    at = string.find(ring, id, at + 1, true)
  end
  return false
end

local fresh, flags = {}, {}
local first, last = tonumber(meta[2]), tonumber(meta[3])
for i = 1, count do
  local base = fixed + 4 * i
  local time, id = tonumber(ARGV[base - 2]), ARGV[base - 1]
  if time <= erased_at then
    flags[i] = 'g'
  elseif id ~= '' and window > 0 and known(id) then
    flags[i] = '0'
  else
    if id ~= '' and window > 0 then
      ordinal[id] = seen + #fresh_ids
      fresh_ids[#fresh_ids + 1] = id
    end
    fresh[#fresh + 1] = base - 3
    if not first or time < first then first = time end
    if not last or time > last then last = time end
    flags[i] = '1'
  end
end
flags = table.concat(flags)
if #fresh == 0 then
  return { total, flags, epoch, meta[7] }
end

-- First what can be refused, by an access list or for its type: an error in the middle undoes nothing.
redis.call('LLEN', KEYS[1])
-- What is not archived yet must not be trimmed; without an archive the bound keeps memory finite.
-- Numbers go out as %.0f: tostring() would write 1e+15 for a large one.
local bounded, entry = ARGV[5] ~= '0', nil
for i = 1, #fresh do
  local event, id, number = ARGV[fresh[i]], ARGV[fresh[i] + 3], string.format('%.0f', total + i)
  if bounded then
    entry = redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[5], '*', 'k', 'e', 't', ARGV[1], 'u', ARGV[2], 'e', event, 'i', id, 'n', number, 'p', epoch)
  else
    entry = redis.call('XADD', KEYS[5], '*', 'k', 'e', 't', ARGV[1], 'u', ARGV[2], 'e', event, 'i', id, 'n', number, 'p', epoch)
  end
end

local packed = {}
for i = 1, #fresh do
  packed[i] = ARGV[fresh[i]]
end
local length
for from = 1, #packed, 1000 do -- unpack() is limited by Lua's C stack
  length = redis.call('RPUSH', KEYS[1], unpack(packed, from, math.min(from + 999, #packed)))
end
if length > max_sequence then
  -- LTRIM's ends are inclusive: -max_sequence to -1 keeps exactly max_sequence events.
  redis.call('LTRIM', KEYS[1], -max_sequence, -1)
end

total = total + #fresh
local number, from, to = string.format('%.0f', total), string.format('%.0f', first), string.format('%.0f', last)
local set = { 'n', number, 'f', from, 'l', to }
local function also(field, value)
  set[#set + 1], set[#set + 2] = field, value
end
if not meta[4] then also('e', epoch) end
local day = string.format('%d', math.floor(tonumber(string.match(entry, '^%d+')) / 86400000))
if meta[8] ~= day then also('d', day) end
if bounded and not meta[9] then also('cut', '1') end
redis.call('HSET', KEYS[2], unpack(set))

if #fresh_ids > 0 then
  local ids = seen + #fresh_ids
  local header = struct.pack('<I4I4I8', window, 0, ids)
  if moved or (seen < window and ids >= window) or #fresh_ids >= window then
    local slots = {} -- from here on in the order of the slots
    for slot = 0, math.min(ids, window) - 1 do
      local o = ids - 1 - (ids - 1 - slot) % window
      slots[#slots + 1] = o >= seen and fresh_ids[o - seen + 1] or string.sub(ring, 17 + 8 * slot, 24 + 8 * slot)
    end
    redis.call('SET', KEYS[3], header .. table.concat(slots))
  else
    local slot = seen % window
    local before_end = math.min(#fresh_ids, window - slot)
    redis.call('SETRANGE', KEYS[3], 16 + 8 * slot, table.concat(fresh_ids, '', 1, before_end))
    if before_end < #fresh_ids then
      redis.call('SETRANGE', KEYS[3], 16, table.concat(fresh_ids, '', before_end + 1))
    end
    redis.call('SETRANGE', KEYS[3], 0, header)
  end
end
return { total, flags, epoch, meta[7] }
