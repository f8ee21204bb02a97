-- The steps in which a user is led to another one: the first part of a merge. What others act on, `to`, is never taken back; before
-- it comes an intent, that only other merges look at, so that of two in opposite directions one at most goes on.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>  hash  to the user that this one is merged into, ms p while its events are on their way, d
--                                             then, e while this one is being erased, with the user `to` (see erase.lua); into
--                                             where it is about to go, ia since when (unix ms by the clock of Redis), ik the token
--                                             of the request that said so last; it stays, and names this merge
-- ARGV    what to do:
--         'intend' target, token          say where this user is about to go
--         'go' target, token              lead it there, if that was said less than GO ms ago, and by nobody else since
--         'stay' target, token            take the intent back, unless it is another request's by now
--         'shorten' target, from, merges  who has come to `from` by one of these merges goes to the target, where that one has gone
--         'again' merge, token            give another name to the merge by which this user went
--         'settle' holder, merges, ms     who was erased with the holder does not lead there any more after so long
--         'part' holder, merges           nor from now on
--         'look'
-- Returns {to, ms, where it leads or is about to, ik} as it is afterwards, empty strings if nowhere. An intent is forgotten after STALE ms:
-- whoever had it was killed. So is one of so much later than now: the clock was set back since.

local GO, STALE = 5000, 10000

-- The clock may be read before writing: effects are replicated, not the script. Said aloud for Redis 6.
if redis.replicate_commands then redis.replicate_commands() end
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)

local function get() return redis.call('HMGET', KEYS[1], 'to', 'ms', 'into', 'ia', 'ik') end
local what, found = ARGV[1], get()
local function age_of(intent) return intent[3] and math.abs(now - tonumber(intent[4])) end
local age = age_of(found)
local function by(merges) -- whether this user goes by one of them; one that was restored from an archive has no other name than 1
  return is_among(merges, found[5] or '1')
end

if what == 'intend' then
  if not found[1] and (not age or age > STALE or found[3] == ARGV[2]) then
    redis.call('HSET', KEYS[1], 'into', ARGV[2], 'ia', string.format('%.0f', now), 'ik', ARGV[3])
  end
elseif what == 'go' then
  if not found[1] and found[3] == ARGV[2] and found[5] == ARGV[3] and age <= GO then
    redis.call('HSET', KEYS[1], 'to', ARGV[2], 'ms', 'p')
    redis.call('HDEL', KEYS[1], 'into', 'ia')
  end
elseif what == 'stay' then
  if found[3] == ARGV[2] and found[5] == ARGV[3] then redis.call('HDEL', KEYS[1], 'into', 'ia', 'ik') end
elseif what == 'shorten' then
  if found[1] == ARGV[3] and found[2] == 'd' and by(ARGV[4]) then redis.call('HSET', KEYS[1], 'to', ARGV[2]) end
elseif what == 'again' then
  if found[1] and found[2] ~= 'e' and by(ARGV[2]) then redis.call('HSET', KEYS[1], 'ik', ARGV[3]) end
elseif what == 'settle' then
  if found[1] == ARGV[2] and found[2] == 'e' and by(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
elseif what == 'part' then
  if found[1] == ARGV[2] and found[2] == 'e' and by(ARGV[3]) then redis.call('DEL', KEYS[1]) end
end
found = get()
local fresh = found[3] and age_of(found) <= STALE
local leads = found[2] ~= 'e' and found[1]
return { found[1] or '', found[2] or '', leads or (fresh and found[3]) or '', found[5] or '' }
