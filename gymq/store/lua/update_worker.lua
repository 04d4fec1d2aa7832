-- Change what the registry says of a worker, unless it was declared dead.
--
-- KEYS[1]  the shard's prefix; with it: workers HASH worker -> what it is; begins with "dead" from when it was declared so
-- ARGV[1]  worker  ARGV[2] JSON
-- Returns 1 changed, 0 it stands there no more.
local info = redis.call('HGET', KEYS[1] .. 'workers', ARGV[1])
if not info or string.sub(info, 1, 4) == 'dead' then return 0 end
redis.call('HSET', KEYS[1] .. 'workers', ARGV[1], ARGV[2])
return 1
