-- Forget a run.
--
-- KEYS[1]  the shard's prefix; with it all keys of the run (see docs/architecture.md) and of its rollouts
-- ARGV[1]  run
-- Returns 1.
local P = KEYS[1]
local call = redis.call
local run = ARGV[1]
for _, rid in ipairs(call('SMEMBERS', P .. 'live:' .. run)) do
  call('DEL', P .. 'r:' .. rid, P .. 't:' .. rid, P .. 'k:' .. rid)
  call('ZREM', P .. 'due', rid)
end
call('LREM', P .. 'open', 0, run)
call('ZREM', P .. 'runs', run)
for _, kind in ipairs({'run:', 'rows:', 'chunks:', 'live:', 'groups:', 'skip:', 'cancel:', 'out:'}) do
  call('DEL', P .. kind .. run)
end
return 1
