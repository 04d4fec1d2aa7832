-- Declare a consumer of a run: from now on nothing is trimmed that it has not acknowledged.
--
-- KEYS[1]  the shard's prefix; with it:
--   run:<run>  HASH    from:<consumer> rollouts that were gone when it came
--   out:<run>  STREAM  finished rollouts; the consumer is a consumer group
-- ARGV[1]  run  ARGV[2] consumer
-- Returns how many finished rollouts it will not see; -1 no such run.
local P = KEYS[1]
local call = redis.call
local run, consumer = ARGV[1], ARGV[2]
local runk, stream = P .. 'run:' .. run, P .. 'out:' .. run
if call('EXISTS', runk) == 0 then return -1 end
local missed = call('HGET', runk, 'from:' .. consumer)
if missed then return tonumber(missed) end
local h = call('HMGET', runk, 'ended', 'n:kept')
call('XGROUP', 'CREATE', stream, consumer, '0', 'MKSTREAM')
missed = tonumber(h[1] or 0) - tonumber(h[2] or 0) - call('XLEN', stream)
call('HSET', runk, 'from:' .. consumer, missed)
local ttl = call('TTL', runk)
if ttl >= 0 then call('EXPIRE', stream, ttl) end
return missed
