-- Read how far a run is, as a consumer needs it.
--
-- KEYS[1]  the shard's prefix; with it: run:<run> HASH, live:<run> SET
-- ARGV[1]  run
-- Returns state (false: no such run), rows, samples, ended, rollouts in flight.
local h = redis.call('HMGET', KEYS[1] .. 'run:' .. ARGV[1], 'state', 'rows', 'samples', 'ended')
return {
  h[1], tonumber(h[2] or 0), tonumber(h[3] or 0), tonumber(h[4] or 0), redis.call('SCARD', KEYS[1] .. 'live:' .. ARGV[1])
}
