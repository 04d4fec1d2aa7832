-- Forget a consumer of a run; rollouts that only it still needed are trimmed by the next acknowledgement of another.
--
-- KEYS[1]  the shard's prefix; with it:
--   run:<run>  HASH    from:<consumer>, acked:<consumer>, to:<consumer> where a file sink of that name writes
--   out:<run>  STREAM  finished rollouts; the consumer is a consumer group
-- Epochs of its members stay: a process of before must not take itself for the one of a consumer that is declared again.
-- ARGV[1]  run  ARGV[2] consumer
-- Returns 1, or 0 if there is no such consumer.
local P = KEYS[1]
local run, consumer = ARGV[1], ARGV[2]
local runk, stream = P .. 'run:' .. run, P .. 'out:' .. run
if redis.call('HDEL', runk, 'from:' .. consumer) == 0 then return 0 end
redis.call('HDEL', runk, 'acked:' .. consumer, 'to:' .. consumer)
if redis.call('EXISTS', stream) == 1 then redis.call('XGROUP', 'DESTROY', stream, consumer) end
return 1
