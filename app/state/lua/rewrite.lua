-- Write a user's sequence anew, under a new epoch: a bulk import, a merge. The caller has read the user, worked out the new
-- sequence (sorted by time), and says what it was worked out from, and what comes in place of how many of the events that it has read,
-- from the end: what is before stays. Events that were appended since are sorted in here: whoever writes without a pause could keep
-- the caller from ever being in time. If anything else has changed since, nothing is done.
--
-- KEYS[1] lw:{pp}:<tenant>:seq:<user>        list    packed events, oldest first
-- KEYS[2] lw:{pp}:<tenant>:meta:<user>       hash    n, e, f, l, a, d and cut (see expire.lua), one field for each import or merge that is
--                                                    done, and m:<user> for each user that was merged into this one, with the
--                                                    names of its merges, separated by blanks; was: the last epochs before this
--                                                    one, 8 bytes each
-- KEYS[3] lw:{pp}:<tenant>:ids:<user>        string  ring of the hashes of the last event ids, see append.lua
-- KEYS[4] lw:{pp}:log                        stream  k s: the sequence is rewritten (o: the user that the events come from, n: the
--                                                    n of that one, c: how many follow, i: the mark, a: attributes), then k h: an
--                                                    event that is new here
-- KEYS[5] lw:{pp}:<tenant>:gone:<user hash>  string  when the user was erased
-- ARGV    tenant, user, expected epoch ('' for no user), expected n, new epoch, n, smallest and largest time (unix ms, or ''), attributes
--         (MessagePack, or '': unchanged), meta field that marks this rewrite (or '': what others have of the epochs before is taken
--         out, and these are forgotten), the user that the events come from (or ''),
--         ring ('' for none), log_max_length (0: no bound), 1 to write the log, number of arguments with what comes in,
--         number of new events, expected tombstone (or ''), header of the ring as it was read (or ''), max_sequence, another user who
--         must be known here (or ''), by this merge, meta field that marks the whole of which this is a part (or ''), how many events
--         at the end of what was read are replaced, n of the user that the events come from (or 0), what comes in, at most 1000 packed
--         events an argument, then packed event and event id of each new event, as many an argument; each of these behind its length
--         (u32, little-endian)
-- Returns 1 if it is done, 0 if the user has changed, 2 if this rewrite was done before, -1 if the user does not know of that merge

local MOST_LATE = 1000

local meta = redis.call('HMGET', KEYS[2], 'n', 'e', 'to')
if ARGV[10] ~= '' and redis.call('HEXISTS', KEYS[2], ARGV[10]) == 1 then
  return 2
end
if ARGV[22] ~= '' and redis.call('HEXISTS', KEYS[2], ARGV[22]) == 1 then
  return 2
end
local late = (tonumber(meta[1]) or 0) - tonumber(ARGV[4]) -- events appended since
if ARGV[20] ~= '' and not knows(KEYS[2], ARGV[20], ARGV[21]) then return -1 end
if meta[3] or (meta[2] or '') ~= ARGV[3] or late < 0 or late > MOST_LATE or late > redis.call('LLEN', KEYS[1])
  or (redis.call('GET', KEYS[5]) or '') ~= ARGV[17] then
  return 0
end
-- Not MessagePack: cmsgpack of Redis 6.2 does not know its type for bytes.
local function parts_of(packed)
  local parts, at = {}, 1
  while at <= #packed do
    parts[#parts + 1], at = struct.unpack('<I4c0', packed, at)
  end
  return parts
end

local fixed = 24
local replaced = tonumber(ARGV[23])
local last = fixed + tonumber(ARGV[15])
local first_time, last_time, ring = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[12]
local chunks = {} -- no more in one than unpack() can put on Lua's C stack
for i = fixed + 1, last do
  chunks[#chunks + 1] = parts_of(ARGV[i])
end

-- The time of a packed event (events.py): an array, of which the type is the first and the time the second.
local INTEGERS = { [0xcc] = '>I1', [0xcd] = '>I2', [0xce] = '>I4', [0xcf] = '>I8',
  [0xd0] = '>i1', [0xd1] = '>i2', [0xd2] = '>i4', [0xd3] = '>i8' }
local function time_of(event)
  local head, at = string.byte(event, 2), nil
  if head == 0xd9 then
    at = 4 + string.byte(event, 3)
  elseif head == 0xda then
    at = 5 + struct.unpack('>I2', event, 3)
  else
    at = 3 + head - 0xa0
  end
  head = string.byte(event, at)
  if head < 0x80 then return head end
  if head >= 0xe0 then return head - 0x100 end
  return (struct.unpack(INTEGERS[head], event, at + 1))
end

if late > 0 then
  -- The ids of the late events: those that the ring has got since it was read.
  local current = redis.call('GET', KEYS[3])
  if current then
    local slots, _, seen = struct.unpack('<I4I4I8', current)
    local read_slots, read_seen = slots, 0
    if ARGV[18] ~= '' then
      local _
      read_slots, _, read_seen = struct.unpack('<I4I4I8', ARGV[18])
    end
    if slots ~= read_slots or seen < read_seen then -- the setting was changed
      return 0
    end
    local ids = { string.sub(ring, 17) }
    for o = math.max(read_seen, seen - slots), seen - 1 do
      local id = string.sub(current, 17 + 8 * (o % slots), 24 + 8 * (o % slots))
      local at = string.find(ring, id, 17, true)
      while at and at % 8 ~= 1 do at = string.find(ring, id, at + 1, true) end -- a match across two neighbours is no match
      if at then return 0 end -- what is new here was told meanwhile
      ids[#ids + 1] = id
    end
    ids = string.sub(table.concat(ids), -8 * slots)
    ring = struct.pack('<I4I4I8', slots, 0, #ids / 8) .. ids
  end
  -- Each goes behind all that is as old or older, but before what is new here: as if it had been there when the caller read.
  local stays = redis.call('LLEN', KEYS[1]) - late - replaced
  local fresh, sorted = {}, stays > 0 and redis.call('LRANGE', KEYS[1], 0, stays - 1) or {}
  for i = last + 1, #ARGV do
    local parts = parts_of(ARGV[i])
    for j = 1, #parts, 2 do fresh[parts[j]] = true end
  end
  for _, chunk in ipairs(chunks) do
    for _, event in ipairs(chunk) do sorted[#sorted + 1] = event end
  end
  for _, event in ipairs(redis.call('LRANGE', KEYS[1], -late, -1)) do
    local time, place = time_of(event), #sorted
    while place > 0 do
      local other = time_of(sorted[place])
      if other < time or (other == time and not fresh[sorted[place]]) then break end
      place = place - 1
    end
    table.insert(sorted, place + 1, event)
    first_time, last_time = math.min(first_time or time, time), math.max(last_time or time, time)
  end
  chunks, replaced = {}, redis.call('LLEN', KEYS[1])
  for from = math.max(1, #sorted - tonumber(ARGV[19]) + 1), #sorted, 1000 do
    chunks[#chunks + 1] = { unpack(sorted, from, math.min(from + 999, #sorted)) }
  end
end

redis.call('XLEN', KEYS[4]) -- of another type, it is met before anything is done: an error in the middle undoes nothing
redis.call('LTRIM', KEYS[1], 0, -1 - replaced)
redis.call('DEL', KEYS[3])
for _, chunk in ipairs(chunks) do
  redis.call('RPUSH', KEYS[1], unpack(chunk))
end
redis.call('LTRIM', KEYS[1], -tonumber(ARGV[19]), -1)
redis.call('HSET', KEYS[2], 'n', string.format('%.0f', tonumber(ARGV[6]) + late), 'e', ARGV[5])
if ARGV[10] == '' then
  redis.call('HDEL', KEYS[2], 'was')
elseif meta[2] then
  ended(KEYS[2], meta[2])
end
if first_time then
  redis.call('HSET', KEYS[2], 'f', string.format('%.0f', first_time), 'l', string.format('%.0f', last_time))
end
if ARGV[9] ~= '' then
  redis.call('HSET', KEYS[2], 'a', ARGV[9])
end
if ARGV[10] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[10], '1')
end
if ring ~= '' then
  redis.call('SET', KEYS[3], ring)
end
if ARGV[14] == '1' then
  local entry = redis.call('XADD', KEYS[4], '*', 'k', 's', 't', ARGV[1], 'u', ARGV[2], 'p', ARGV[5], 'c', ARGV[16], 'o', ARGV[11],
    'i', ARGV[10], 'a', ARGV[9], 'n', ARGV[24])
  redis.call('HSET', KEYS[2], 'd', string.format('%d', math.floor(tonumber(string.match(entry, '^%d+')) / 86400000)))
  for i = last + 1, #ARGV do
    local parts = parts_of(ARGV[i])
    for j = 1, #parts, 2 do
      redis.call('XADD', KEYS[4], '*', 'k', 'h', 't', ARGV[1], 'u', ARGV[2], 'e', parts[j], 'i', parts[j + 1], 'n', '0', 'p', ARGV[5])
    end
  end
  if ARGV[13] ~= '0' then
    redis.call('HSET', KEYS[2], 'cut', '1')
    redis.call('XTRIM', KEYS[4], 'MAXLEN', '~', ARGV[13])
  end
end
return 1
