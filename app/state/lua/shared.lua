-- Stands before every other script.

-- Whether a merge is among some, whose names are separated by blanks.
local function is_among(merges, merge) return string.find(' ' .. merges .. ' ', ' ' .. merge .. ' ', 1, true) ~= nil end

-- Whether a user, who has this meta, knows of a merge by which another one came to it.
local function knows(meta, source, merge) return is_among(redis.call('HGET', meta, 'm:' .. source) or '', merge) end

-- Note with a user, whose epoch ends, the last few that it had: in which of them it was merged may be what Redis loses.
local function ended(meta, epoch)
  redis.call('HSET', meta, 'was', string.sub((redis.call('HGET', meta, 'was') or '') .. epoch, -64))
end

