-- Send mail for rollouts that are due: a wait is over, a limit is reached, or a call is overdue.
--
-- KEYS[1]  the shard's prefix; with it:
--   due          ZSET    rollout -> ms
--   r:<rollout>  HASH    v version
--   m:agent      STREAM  mail of the agents; d = 1: it is due
-- ARGV[1]  ms of now, '': the server's clock  ARGV[2] how many at most  ARGV[3] ms until one of which nothing comes is due again
-- Returns how many were sent mail.
local P = KEYS[1]
local call = redis.call
local now = tonumber(ARGV[1])
if not now then
  local t = call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local rids = call('ZRANGEBYSCORE', P .. 'due', '-inf', now, 'LIMIT', 0, ARGV[2])
local sent = 0
for _, rid in ipairs(rids) do
  local v = call('HGET', P .. 'r:' .. rid, 'v')
  if v then
    -- Moved at once, so that the next sweep finds it no more; the step that follows sets the time anew.
    call('ZADD', P .. 'due', 'XX', now + ARGV[3], rid)
    call('XADD', P .. 'm:agent', '*', 'r', rid, 'v', v, 'd', 1)
    sent = sent + 1
  else
    call('ZREM', P .. 'due', rid)
  end
end
return sent
