-- Which model serves: read it, or change it where it is still what the caller believes.
--
-- KEYS[1] lw:model  hash  active, previous model ids, generation (grows with each change), candidate model id, token of the worker
--                         that brings it, phase (prepare, backfill), done (users backfilled), since (unix ms)
-- ARGV    what to do, then
--         'first' model id                        make it active if none is
--         'begin' model id, token, unix ms, stale token (''): there may be a candidate of that token, whose worker is dead
--         'progress' token, phase, done
--         'commit' token, generation              the candidate becomes active
--         'end' token                             there is no candidate any more
-- Returns 1 if it is done, 0 if not, because things are different

local what = ARGV[1]
local function get(field) return redis.call('HGET', KEYS[1], field) or '' end

if what == 'first' then
  if get('active') ~= '' then return 0 end
  redis.call('HSET', KEYS[1], 'active', ARGV[2], 'generation', 1)
elseif what == 'begin' then
  local token = get('token')
  if token ~= '' and token ~= ARGV[5] then return 0 end
  redis.call('HSET', KEYS[1], 'candidate', ARGV[2], 'token', ARGV[3], 'since', ARGV[4], 'phase', 'prepare', 'done', 0)
else
  if get('token') ~= ARGV[2] then return 0 end
  if what == 'progress' then
    redis.call('HSET', KEYS[1], 'phase', ARGV[3], 'done', ARGV[4])
  else
    if what == 'commit' then
      if get('generation') ~= ARGV[3] then return 0 end
      redis.call('HSET', KEYS[1], 'previous', get('active'), 'active', get('candidate'))
      redis.call('HINCRBY', KEYS[1], 'generation', 1)
    end
    redis.call('HDEL', KEYS[1], 'candidate', 'token', 'since', 'phase', 'done')
  end
end
return 1
