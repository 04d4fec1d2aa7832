-- Let a closed run take rows again, as long as it is not done; on one shard it may be done before the others.
--
-- KEYS[1]  the shard's prefix; with it: run:<run> HASH state, config; runs ZSET; and all other keys of the run, which have a TTL
--   when it is done
-- ARGV[1]  run  ARGV[2] seconds since the epoch at which it was created, if it is known to go on elsewhere: it may be done here
-- Returns 1 if it takes rows now, 0 if it is cancelled or done, or does not exist.
local P = KEYS[1]
local call = redis.call
local run = ARGV[1]
local runk = P .. 'run:' .. run
local state = call('HGET', runk, 'state')
if state ~= 'open' and state ~= 'closed' and not (state == 'done' and ARGV[2]) then return 0 end
if state == 'done' then
  call('ZADD', P .. 'runs', ARGV[2], run)
  for _, kind in ipairs({'run:', 'rows:', 'chunks:', 'groups:', 'skip:', 'cancel:', 'out:'}) do
    call('PERSIST', P .. kind .. run)
  end
end
call('HSET', runk, 'state', 'open')
return 1
