-- Which model serves: read it, or change it where it is still what the caller believes.
--
-- KEYS[1] lw:model  hash  active, previous model ids, generation (grows with each change), candidate model id, token of the worker
--                         that brings it, phase (prepare, backfill), done (users backfilled), since (unix ms),
--                         last (how the last activation ended, JSON), past (models that were active, or were there when the
--                         service was started), refused (model:signature of its files, of bundles that could not be verified);
--                         the last two are lists with blanks in between, the newest last
-- ARGV    what to do, then
--         'first' model id                        make it active if none is
--         'begin' model id, token, unix ms, stale token (''): there may be a candidate of that token, whose worker is dead
--         'progress' token, phase, done
--         'commit' token, generation, JSON        the candidate becomes active
--         'end' token, JSON                       there is no candidate any more
--         'said' model id, JSON                   of an activation that the model got through
--         'know' model ids                        they are not new
--         'refuse' model id, signature
-- Returns 1 if it is done, 0 if not, because things are different

local MOST = 200 -- entries of a list: each poll of each worker reads them

local what = ARGV[1]
local function get(field) return redis.call('HGET', KEYS[1], field) or '' end

local function add(field, name, entry)
  local entries = {}
  for one in string.gmatch(get(field), '%S+') do
    if string.match(one, '^[^:]*') ~= name then entries[#entries + 1] = one end
  end
  entries[#entries + 1] = entry
  redis.call('HSET', KEYS[1], field, table.concat(entries, ' ', math.max(1, #entries - MOST + 1)))
end

if what == 'first' then
  if get('active') ~= '' then return 0 end
  redis.call('HSET', KEYS[1], 'active', ARGV[2], 'generation', 1)
  add('past', ARGV[2], ARGV[2])
elseif what == 'begin' then
  local token = get('token')
  if token ~= '' and token ~= ARGV[5] then return 0 end
  redis.call('HSET', KEYS[1], 'candidate', ARGV[2], 'token', ARGV[3], 'since', ARGV[4], 'phase', 'prepare', 'done', 0)
elseif what == 'said' then
  if get('active') ~= ARGV[2] then return 0 end
  redis.call('HSET', KEYS[1], 'last', ARGV[3])
elseif what == 'know' then
  for i = 2, #ARGV do add('past', ARGV[i], ARGV[i]) end
elseif what == 'refuse' then
  add('refused', ARGV[2], ARGV[2] .. ':' .. ARGV[3])
else
  if get('token') ~= ARGV[2] then return 0 end
  if what == 'progress' then
    redis.call('HSET', KEYS[1], 'phase', ARGV[3], 'done', ARGV[4])
  else
    if what == 'commit' then
      if get('generation') ~= ARGV[3] then return 0 end
      local candidate = get('candidate')
      redis.call('HSET', KEYS[1], 'previous', get('active'), 'active', candidate, 'last', ARGV[4])
      redis.call('HINCRBY', KEYS[1], 'generation', 1)
      add('past', candidate, candidate)
    else
      redis.call('HSET', KEYS[1], 'last', ARGV[3])
    end
    redis.call('HDEL', KEYS[1], 'candidate', 'token', 'since', 'phase', 'done')
  end
end
return 1
