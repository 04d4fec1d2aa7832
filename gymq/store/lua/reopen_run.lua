-- Let a closed run take rows again, as long as it is not done.
--
-- KEYS[1]  the shard's prefix; with it: run:<run> HASH state
-- ARGV[1]  run
-- Returns 1 if it takes rows now, 0 if it is cancelled or done, or does not exist.
local runk = KEYS[1] .. 'run:' .. ARGV[1]
local state = redis.call('HGET', runk, 'state')
if state ~= 'open' and state ~= 'closed' then return 0 end
redis.call('HSET', runk, 'state', 'open')
return 1
