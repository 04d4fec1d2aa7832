-- See what became of calls that were given to executors.
--
-- KEYS[1]  the shard's prefix; with it:
--   r:<rollout>        HASH    v version, c<step>.<n> pending calls
--   isolated           HASH    call id -> executor that works on it
--   alive:<executor>   STRING  lapses with the executor
-- ARGV[1]  msgpack list of calls, each: 1 rollout  2 step  3 n
-- Returns a list: 0 answered or not wanted any more, 1 no executor has begun it, 2 an executor works on it, 3 the executor that
-- worked on it is dead, 4 not wanted any more and an executor works on it all the same (or has just answered).
local P = KEYS[1]
local call = redis.call
local out = {}
for i, c in ipairs(cmsgpack.unpack(ARGV[1])) do
  local id = c[1] .. ':' .. c[2] .. ':' .. c[3]
  local h = call('HMGET', P .. 'r:' .. c[1], 'v', 'c' .. c[2] .. '.' .. c[3])
  local wanted = h[2] and tonumber(h[1]) == c[2]
  local executor = call('HGET', P .. 'isolated', id)
  local alive = executor and call('EXISTS', P .. 'alive:' .. executor) == 1
  if not wanted then
    if executor and not alive then call('HDEL', P .. 'isolated', id) end
    out[i] = alive and 4 or 0
  elseif not executor then
    out[i] = 1
  else
    out[i] = alive and 2 or 3
  end
end
return out
