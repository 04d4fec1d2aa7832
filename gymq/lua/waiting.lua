-- See what became of calls that were given to executors.
--
-- KEYS[1]  the shard's prefix; with it:
--   r:<rollout>        HASH    c<step>.<n> pending calls
--   isolated           HASH    call id -> executor that works on it
--   alive:<executor>   STRING  lapses with the executor
-- ARGV[1]  msgpack list of calls, each: 1 rollout  2 step  3 n
-- Returns a list: 0 answered, 1 nobody has begun, 2 an executor works on it, 3 the executor that worked on it is dead.
local P = KEYS[1]
local call = redis.call
local out = {}
for i, c in ipairs(cmsgpack.unpack(ARGV[1])) do
  out[i] = 0
  if call('HEXISTS', P .. 'r:' .. c[1], 'c' .. c[2] .. '.' .. c[3]) == 1 then
    local executor = call('HGET', P .. 'isolated', c[1] .. ':' .. c[2] .. ':' .. c[3])
    if not executor then
      out[i] = 1
    elseif call('EXISTS', P .. 'alive:' .. executor) == 1 then
      out[i] = 2
    else
      out[i] = 3
    end
  end
end
return out
