-- Begin a call that must not be run twice.
--
-- KEYS[1]  the shard's prefix; with it:
--   r:<rollout>  HASH  c<step>.<n> pending calls, o<step>.<n> worker that began a call
-- ARGV[1]  rollout  ARGV[2] <step>.<n>  ARGV[3] worker
-- Returns 1 begun by this worker, 0 begun by another, -1 the call is not pending: the rollout has ended.
local rk = KEYS[1] .. 'r:' .. ARGV[1]
if redis.call('HEXISTS', rk, 'c' .. ARGV[2]) == 0 then return -1 end
redis.call('HSETNX', rk, 'o' .. ARGV[2], ARGV[3])
return redis.call('HGET', rk, 'o' .. ARGV[2]) == ARGV[3] and 1 or 0
