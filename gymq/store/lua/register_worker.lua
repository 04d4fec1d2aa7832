-- Enter a worker into the registry, with its private mailbox if it wants one. Done twice it changes nothing.
--
-- KEYS[1]  the shard's prefix; with it:
--   workers         HASH    worker -> its entry
--   alive:<worker>  STRING  lapses with the worker
--   private         HASH    worker -> mailboxes whose mail its private mailbox takes; there as long as the stream is
--   m:@<worker>     STREAM  its private mailbox
-- ARGV[1]  worker  ARGV[2] its entry  ARGV[3] ms to live  ARGV[4] mailboxes for its private one, JSON; "": none
-- Returns nothing.
local P = KEYS[1]
local call = redis.call
local worker, own = ARGV[1], P .. 'm:@' .. ARGV[1]
call('HSET', P .. 'workers', worker, ARGV[2])
call('SET', P .. 'alive:' .. worker, 1, 'PX', ARGV[3])
if ARGV[4] ~= '' then
  if call('EXISTS', own) == 0 then call('XGROUP', 'CREATE', own, 'g', 0, 'MKSTREAM') end
  call('HSET', P .. 'private', worker, ARGV[4])
end
