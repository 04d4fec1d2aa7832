-- Say which weights a model's replicas are to sample with; versions only grow.
--
-- KEYS[1]  the prefix of shard 0; with it:
--   weights:<model>  HASH  version, id of the publication, weights: JSON of `gymq.store.model_weights.Weights`
--   failed:<model>   LIST  replicas that could not load the version before
-- ARGV[1]  model  ARGV[2] version  ARGV[3] id  ARGV[4] JSON
-- Returns {1} they are wanted now, or were by this same publication; {0, version}: refused, that one is wanted.
local call = redis.call
local key = KEYS[1] .. 'weights:' .. ARGV[1]
local there = call('HMGET', key, 'version', 'id')
if there[2] == ARGV[3] then return {1} end
if there[1] and tonumber(there[1]) >= tonumber(ARGV[2]) then return {0, tonumber(there[1])} end
call('HSET', key, 'version', ARGV[2], 'id', ARGV[3], 'weights', ARGV[4])
call('DEL', KEYS[1] .. 'failed:' .. ARGV[1])
return {1}
