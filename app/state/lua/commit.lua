-- Store a state by compare-and-set: folds may race, but never regress and never bring an older epoch back.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>              hash    n, e, to
-- KEYS[2] lw:{pp}:<tenant>:state:<model_id>:<user>  string  see codec.py: prefix 1-6, epoch 9-16, base 17-24, applied 25-32,
--                                                           catalogue version 33-40 (u64), bytes behind the header 41-44
-- KEYS[3] lw:{pp}:<tenant>:seq:<user>               list
-- ARGV    the state, header included; how long it is kept (ms): a state is a cache, and the models of yesterday go this way
-- Returns 1 if it was stored; 0 if what is stored is as good or ahead of it, which is then kept as long from now on; -1 if it is of no
--         use: of another epoch, ahead of all that was ever appended, or of a user who is being merged into another one, whose
--         states are about to go; -2 if what is stored remembers more: one that began earlier is not given up for one that
--         began later. One of the same events at a later version of the catalogue is better. What is damaged, or behind the
--         sequence, is ahead of nothing: load.lua and the fold would never use it.

local state = ARGV[1]
local epoch, base, applied, version = string.sub(state, 9, 16), struct.unpack('<I8I8I8', state, 17)
local meta = redis.call('HMGET', KEYS[1], 'n', 'e', 'to')
local appended = tonumber(meta[1]) or 0
if meta[2] ~= epoch or applied > appended or meta[3] then
  return -1
end
local stored = redis.pcall('GETRANGE', KEYS[2], 0, 47) -- the header, not the kilobytes behind it
if type(stored) == 'string' and #stored == 48 and string.sub(stored, 1, 6) == string.sub(state, 1, 6) and string.sub(stored, 9, 16) == epoch
  and redis.call('STRLEN', KEYS[2]) == 48 + struct.unpack('<I4', stored, 41) then
  local there_base, there, there_version = struct.unpack('<I8I8I8', stored, 17)
  if there <= appended and there >= appended - redis.call('LLEN', KEYS[3]) then
    if base > there_base then
      return -2
    elseif there > applied or (there == applied and there_base == base and there_version >= version) then
      redis.call('PEXPIRE', KEYS[2], ARGV[2])
      return 0
    end
  end
end
redis.call('SET', KEYS[2], state, 'PX', ARGV[2])
return 1
