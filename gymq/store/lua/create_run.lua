-- Create a run, or bring what may differ in one that exists up to date.
--
-- KEYS[1]  the shard's prefix; with it:
--   run:<run>  HASH  config, incarnation, state, and the fields that are given
--   runs       ZSET  run -> created, seconds: runs that are not done
-- ARGV[1] run  ARGV[2] its incarnation  ARGV[3] its config, JSON; "": only if this incarnation exists  ARGV[4] created, seconds
-- ARGV[5..] names and values of fields, in turn
-- Returns {1} created; {0} this incarnation was there and is up to date; {-1, config} there is another one, nothing has
-- changed; {-1} there is none.
local P = KEYS[1]
local call = redis.call
local run, incarnation, config = ARGV[1], ARGV[2], ARGV[3]
local runk = P .. 'run:' .. run
local h = call('HMGET', runk, 'config', 'incarnation', 'state')
if h[1] and h[2] ~= incarnation then return {-1, h[1]} end
if not h[1] and config == '' then return {-1} end
if not h[1] then
  call('HSET', runk, 'config', config, 'incarnation', incarnation, 'state', 'open')
  call('ZADD', P .. 'runs', ARGV[4], run)
end
call('HSET', runk, unpack(ARGV, 5))
return {h[1] and 0 or 1}
