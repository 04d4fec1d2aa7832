-- Open a worker's private mailbox again, unless the worker was declared dead meanwhile.
--
-- KEYS[1]  the shard's prefix; with it:
--   workers      HASH    worker -> its entry
--   private      HASH    worker -> mailboxes whose mail its private mailbox takes
--   m:@<worker>  STREAM  its private mailbox
-- ARGV[1]  worker  ARGV[2] mailboxes, JSON
-- Returns 1 if it is open.
local P = KEYS[1]
local info = redis.call('HGET', P .. 'workers', ARGV[1])
if not info or string.sub(info, 1, 4) == 'dead' or redis.call('EXISTS', P .. 'm:@' .. ARGV[1]) == 0 then return 0 end
redis.call('HSET', P .. 'private', ARGV[1], ARGV[2])
return 1
