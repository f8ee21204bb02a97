-- Delete a state that cannot be continued although its header can, unless another one has come in its place since it was read.
--
-- KEYS[1] lw:{pp}:<tenant>:state:<model_id>:<user>  string
-- ARGV    the state as it was read
-- Returns 1 if it is deleted, 0 if not

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
