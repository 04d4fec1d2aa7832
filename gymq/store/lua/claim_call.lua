-- Begin an isolated call, unless it is answered or an executor that is alive works on it: then its message was a copy.
--
-- KEYS[1]  the shard's prefix; with it:
--   r:<rollout>        HASH    c<step>.<n> pending calls (how many the step has, and its mark)
--   isolated           HASH    call id -> executor that works on it
--   alive:<executor>   STRING  lapses with the executor
-- ARGV[1]  rollout  ARGV[2] step  ARGV[3] n  ARGV[4] the call's idempotency token  ARGV[5] executor
-- ARGV[6]  "1": begin also if the call is not pending any more
-- Returns 1 begin, 0 do not.
local P = KEYS[1]
local call = redis.call
local id = ARGV[1] .. ':' .. ARGV[2] .. ':' .. ARGV[3]
local total, mark = string.match(call('HGET', P .. 'r:' .. ARGV[1], 'c' .. ARGV[2] .. '.' .. ARGV[3]) or '', '^(%d+) ?(.*)$')
if not (total and (mark == '' or mark == ARGV[4])) and ARGV[6] ~= '1' then return 0 end
local owner = call('HGET', P .. 'isolated', id)
if owner and (owner == ARGV[5] or call('EXISTS', P .. 'alive:' .. owner) == 1) then return 0 end
call('HSET', P .. 'isolated', id, ARGV[5])
return 1
