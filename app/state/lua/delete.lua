-- Delete keys of one user, as surely as a script's other writes: a plain DEL is not waited for.
--
-- KEYS    any number
-- Returns how many there were

return redis.call('DEL', unpack(KEYS))
