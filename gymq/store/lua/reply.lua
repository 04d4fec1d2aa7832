-- Merge replies into their rollouts; the last reply of a step sends the step's mail to the agents.
--
-- KEYS[1]  the shard's prefix; with it:
--   r:<rollout>  HASH    c<step>.<n> pending calls (how many the step has, and its mark), l left, y<n> replies that wait
--   m:agent      STREAM  mail of the agents
--   isolated     HASH    call id -> executor that works on it: not any more once it is answered; executors have no mail
--   dead         STREAM  dead letters
-- ARGV[1]  msgpack list of replies, each:
--   1 rollout  2 step  3 n  4 the encoded reply; nil: none, the call is not wanted any more  5 stream and  6 id of the call's mail ("" = none)  7 the call's idempotency token
--   and perhaps 8 the call's dead letter  9 seconds for which dead letters are kept from now on
-- Mail that is not pending any more stays as it is: if only its delivery was lost in a roll-back, it will be delivered again.
-- Returns a list: 1 merged, 0 stale (the call was answered before, the rollout has ended, or the pending call bears another
-- token: Redis was rolled back, and the rollout has gone another way since), 2 it has no reply and is wanted after all: what
-- was read of it has been lost since; the mail stays.
local P = KEYS[1]
local call = redis.call
local batch = cmsgpack.unpack(ARGV[1])
local out = {}
for i = 1, #batch do
  local rid, step, n, body = batch[i][1], batch[i][2], batch[i][3], batch[i][4]
  local rk = P .. 'r:' .. rid
  local field = 'c' .. step .. '.' .. n
  local total, mark = string.match(call('HGET', rk, field) or '', '^(%d+) ?(.*)$')
  out[i] = 0
  local pending = total and (mark == '' or mark == batch[i][7])
  if pending and not body then
    if tonumber(call('HGET', rk, 'v')) == step then out[i] = 2 end
  elseif pending then
    out[i] = 1
    call('HDEL', rk, field)
    if batch[i][8] then
      call('XADD', P .. 'dead', '*', 'b', batch[i][8])
      call('EXPIRE', P .. 'dead', batch[i][9])
    end
    total = tonumber(total)
    if total == 1 then
      call('XADD', P .. 'm:agent', '*', 'r', rid, 'v', step, 'y', body)
    else
      call('HSET', rk, 'y' .. n, body)
      if call('HINCRBY', rk, 'l', -1) == 0 then
        local names = {}
        for j = 1, total do names[j] = 'y' .. (j - 1) end
        local replies = call('HMGET', rk, unpack(names))
        local mail = {'r', rid, 'v', step}
        for j = 1, total do
          mail[#mail + 1] = 'y'
          mail[#mail + 1] = replies[j]
        end
        call('HDEL', rk, unpack(names))
        call('XADD', P .. 'm:agent', '*', unpack(mail))
      end
    end
  end
  if batch[i][6] ~= '' then
    if out[i] ~= 2 and call('XACK', batch[i][5], 'g', batch[i][6]) == 1 then call('XDEL', batch[i][5], batch[i][6]) end
  elseif call('HEXISTS', rk, field) == 0 then
    call('HDEL', P .. 'isolated', rid .. ':' .. step .. ':' .. n)
  end
end
return out
