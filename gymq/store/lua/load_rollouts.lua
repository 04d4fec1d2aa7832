-- Read the parts of rollouts that an actor lacks.
--
-- KEYS[1]  the shard's prefix; with it:
--   r:<rollout>  HASH  v, s, e, q
--   t:<rollout>  LIST  encoded messages
--   k:<rollout>  LIST  call records
--   rows:<run>   HASH  row -> task
-- ARGV[1]  msgpack list, each: 1 rollout  2 first message wanted (-1 = none)  3 run  4 row whose task is wanted (-1 = none)
--            5 true = the call records are wanted, may be missing
-- ARGV[2]  bytes after which the list ends
-- Returns a list of the first of them, at least one, each: 1 v  2 s  3 e  4 q (false where missing)  5 messages  6 task (false if none)  7 call records, if wanted
local P = KEYS[1]
local call = redis.call
local batch = cmsgpack.unpack(ARGV[1])
local out = {}
local left = tonumber(ARGV[2])
local function count(values)
  for j = 1, #values do
    if values[j] then left = left - #values[j] end
  end
end
for i = 1, #batch do
  local rid, from, run, row = batch[i][1], batch[i][2], batch[i][3], batch[i][4]
  local h = call('HMGET', P .. 'r:' .. rid, 'v', 's', 'e', 'q')
  local turns = {}
  if from >= 0 then turns = call('LRANGE', P .. 't:' .. rid, from, -1) end
  local task = false
  if row >= 0 then task = call('HGET', P .. 'rows:' .. run, row) end
  out[i] = {h[1], h[2], h[3], h[4], turns, task}
  if batch[i][5] then
    out[i][7] = call('LRANGE', P .. 'k:' .. rid, 0, -1)
    count(out[i][7])
  end
  count(h)
  count(turns)
  count({task})
  if left <= 0 then break end
end
return out
