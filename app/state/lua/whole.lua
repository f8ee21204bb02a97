-- Read a user whole, as of one moment: of commands that are sent together, others' may come in between.
--
-- KEYS[1] lw:{pp}:<tenant>:meta:<user>        hash    n, e, f, l, a, to, ms, ik
-- KEYS[2] lw:{pp}:<tenant>:seq:<user>         list
-- KEYS[3] lw:{pp}:<tenant>:ids:<user>         string
-- KEYS[4] lw:{pp}:<tenant>:gone:<user hash>   string
-- Returns {{n, e, f, l, a, to, ms, ik}, the sequence, ids, gone}, nil for what is not there

return {
  redis.call('HMGET', KEYS[1], 'n', 'e', 'f', 'l', 'a', 'to', 'ms', 'ik'),
  redis.call('LRANGE', KEYS[2], 0, -1),
  redis.call('GET', KEYS[3]),
  redis.call('GET', KEYS[4]),
}
