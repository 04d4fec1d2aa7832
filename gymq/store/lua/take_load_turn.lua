-- Take, keep or give back the turn in which a replica loads weights while its neighbours serve.
--
-- KEYS[1]  the prefix of shard 0; with it: turn:<model> STRING, the replica whose turn it is; lapses with it
-- ARGV[1]  model  ARGV[2] replica  ARGV[3] ms for which it has the turn unless it asks again; 0: it gives it back
-- Returns 1 it has the turn (or had it, and gave it back), 0 another has it.
local call = redis.call
local key = KEYS[1] .. 'turn:' .. ARGV[1]
local holder = call('GET', key)
if holder and holder ~= ARGV[2] then return 0 end
if ARGV[3] == '0' then
  call('DEL', key)
else
  call('SET', key, ARGV[2], 'PX', ARGV[3])
end
return 1
