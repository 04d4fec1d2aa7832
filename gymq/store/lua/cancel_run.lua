-- Cancel a run: nothing more is admitted, and the agents are told to end what is in flight.
--
-- KEYS[1]  the shard's prefix; with it:
--   run:<run>   HASH    state
--   open        LIST    runs that have something to admit
--   live:<run>  SET     rollouts in flight
--   m:agent     STREAM  mail of the agents; x: what was cancelled
-- ARGV[1]  run
-- Returns how many rollouts were in flight, -1: the run is done.
local P = KEYS[1]
local call = redis.call
local run = ARGV[1]
if call('HGET', P .. 'run:' .. run, 'state') == 'done' then return -1 end
call('HSET', P .. 'run:' .. run, 'state', 'cancelled')
call('LREM', P .. 'open', 0, run)
local live = call('SMEMBERS', P .. 'live:' .. run)
for _, rid in ipairs(live) do
  call('XADD', P .. 'm:agent', '*', 'r', rid, 'v', 0, 'x', 'run')
end
return #live
