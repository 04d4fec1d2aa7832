-- See which calls are still wanted: pending, of the step that their rollout is at.
--
-- KEYS[1]  the shard's prefix; with it: r:<rollout> HASH v version, c<step>.<n> pending calls
-- ARGV[1]  msgpack list of calls, each: 1 rollout  2 step  3 n
-- Returns a list: 1 wanted, 0 not: answered elsewhere, or the rollout has ended or gone on without it.
local P = KEYS[1]
local out = {}
for i, c in ipairs(cmsgpack.unpack(ARGV[1])) do
  local h = redis.call('HMGET', P .. 'r:' .. c[1], 'v', 'c' .. c[2] .. '.' .. c[3])
  out[i] = (h[2] and tonumber(h[1]) == c[2]) and 1 or 0
end
return out
