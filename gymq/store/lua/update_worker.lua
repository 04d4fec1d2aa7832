-- Replace a worker's entry in the registry, unless it was declared dead.
--
-- KEYS[1]  the shard's prefix; with it: workers HASH worker -> its entry; begins with "dead" from when it was declared so
-- ARGV[1]  worker  ARGV[2] JSON
-- Returns 1 changed, 0 it is not there any more.
local info = redis.call('HGET', KEYS[1] .. 'workers', ARGV[1])
if not info or string.sub(info, 1, 4) == 'dead' then return 0 end
redis.call('HSET', KEYS[1] .. 'workers', ARGV[1], ARGV[2])
return 1
