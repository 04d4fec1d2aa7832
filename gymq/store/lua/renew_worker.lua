-- Renew a worker's lease after its key has lapsed, unless another worker declared it dead meanwhile.
--
-- KEYS[1]  the shard's prefix; with it: alive:<worker> STRING, workers HASH worker -> its entry,
--   m:@<worker> STREAM its private mailbox
-- ARGV[1]  worker  ARGV[2] ms to live  ARGV[3] "1": it has a private mailbox, and cannot go on without
-- (info begins with "dead" from when the worker was declared dead)
-- Returns 1 renewed, 0 it was declared dead: its mail belongs to others now.
local P = KEYS[1]
local info = redis.call('HGET', P .. 'workers', ARGV[1])
if not info or string.sub(info, 1, 4) == 'dead' then return 0 end
if ARGV[3] == '1' and redis.call('EXISTS', P .. 'm:@' .. ARGV[1]) == 0 then return 0 end
redis.call('SET', P .. 'alive:' .. ARGV[1], 1, 'PX', ARGV[2])
return 1
