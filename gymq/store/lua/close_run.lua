-- Say that a run gets no more rows.
--
-- KEYS[1]  the shard's prefix; with it: run:<run> HASH state
-- ARGV[1]  run
-- Returns 1 closed, 0 it was closed or done before, -1 it was cancelled or does not exist.
local runk = KEYS[1] .. 'run:' .. ARGV[1]
local state = redis.call('HGET', runk, 'state')
if not state or state == 'cancelled' then return -1 end
if state ~= 'open' then return 0 end
redis.call('HSET', runk, 'state', 'closed')
return 1
