-- Let a user go of whom nothing was heard for long, if the archive has every record of theirs.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>  hash    e epoch, d day of the last record (days since 1970, by the log's clock), cut (some
--                                               records were written to a log that is cut, so the archive may lack them), to
-- KEYS[2] lw:{pp}:<tenant>:seq:<user>   list
-- KEYS[3] lw:{pp}:<tenant>:ids:<user>   string
-- KEYS[4] lw:{pp}:log                   stream  k r, t tenant, u user, p the epoch that has ended: the archive keeps what it has, and
--                                               whoever comes back begins anew
-- KEYS[5] lw:{pp}:log-identity          string  identity (16 hex digits), and up to where the log was trimmed, see `Mark` in archive/log.py
-- KEYS[6...] shown, and the states of every model
-- ARGV    tenant, user, the last stream id of this partition that is archived, the identity of the log that the archive has it from,
--         or empty if the archive may lack some of it; days, most entries behind that id to look through
-- Returns 1 if the user is gone; 0 if not idle; -1 if the archive may lack something; -2 if that cannot be told now: too many
--         entries wait to be archived
--
-- Fields m:<source> of the meta stay: an erasure must find every identity of a user whom the archive still has. So do d:<epoch>: a merge
-- that was cut off, and is finished later, must not bring again what has gone.

-- The clock may be read before writing: effects are replicated, not the script. Said aloud for Redis 6.
if redis.replicate_commands then redis.replicate_commands() end
local today = math.floor(redis.call('TIME')[1] / 86400)
local meta = redis.call('HMGET', KEYS[1], 'e', 'to', 'd', 'cut')
local epoch, day = meta[1], tonumber(meta[3])
if not epoch or meta[2] then
  return 0
end
if not day then -- restored: as if the last record had come today
  redis.call('HSET', KEYS[1], 'd', today)
  return 0
end
if today - day <= tonumber(ARGV[5]) then -- so many whole days have passed since the end of that one
  return 0
end

local archived = ARGV[3]
if meta[4] or archived == '0-0' then
  return -1
end
-- What is archived is of another log, or records behind it have been trimmed for another archive.
local mark = redis.call('GET', KEYS[5]) or ''
if ARGV[4] == '' or string.sub(mark, 1, 16) ~= ARGV[4] or string.match(mark, '%S*$') ~= archived then
  return -1
end
local most = tonumber(ARGV[6])
local waiting = redis.call('XRANGE', KEYS[4], '(' .. archived, '+', 'COUNT', most + 1)
if #waiting > most then
  return -2
end
for _, entry in ipairs(waiting) do
  local tenant, user
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 't' then tenant = entry[2][i + 1] elseif entry[2][i] == 'u' then user = entry[2][i + 1] end
  end
  if tenant == ARGV[1] and user == ARGV[2] then
    return -1
  end
end
if #waiting == 0 then
  -- Where nothing waits, the log's last record must be the archive's last one, or something has cut the log, or it is another log.
  local about, last = redis.pcall('XINFO', 'STREAM', KEYS[4]), nil
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' then last = about[i + 1] end
  end
  if last ~= archived then
    return -1
  end
end

local fields = redis.call('HGETALL', KEYS[1])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], unpack(KEYS, 6))
for i = 1, #fields, 2 do
  if string.match(fields[i], '^[md]:') then
    redis.call('HSET', KEYS[1], fields[i], fields[i + 1])
  end
end
redis.call('XADD', KEYS[4], '*', 'k', 'r', 't', ARGV[1], 'u', ARGV[2], 'p', epoch)
return 1
