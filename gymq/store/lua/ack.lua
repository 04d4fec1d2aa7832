-- Acknowledge finished rollouts; trim what all consumers have acknowledged; see whether the run is done.
--
-- KEYS[1]  the shard's prefix; with it:
--   out:<run>   STREAM  finished rollouts; a consumer group for each consumer
--   run:<run>   HASH    state, rows, samples, ended, acked:<consumer>, member:<consumer>:<member> the member's epoch
--   live:<run>  SET     rollouts in flight
--   and all other keys of the run, which get a TTL when it is done
-- ARGV[1] run  ARGV[2] consumer  ARGV[3] TTL, seconds  ARGV[4] member  ARGV[5] its epoch; member "": an operator, no ids follow
-- ARGV[6..] ids
-- Returns 1 if the run is done, 0 if not; and nothing was acknowledged: -1 if there is no such consumer, -2 if another process is
-- the member now, -3 if Redis has lost the epoch, so that the process has to become the member again.
local P = KEYS[1]
local call = redis.call
local run, consumer, ttl = ARGV[1], ARGV[2], ARGV[3]
local stream, runk = P .. 'out:' .. run, P .. 'run:' .. run
if call('HEXISTS', runk, 'from:' .. consumer) == 0 then return -1 end
local epoch = call('HGET', runk, 'member:' .. consumer .. ':' .. ARGV[4])
if ARGV[4] ~= '' and epoch ~= ARGV[5] then
  return tonumber(string.match(epoch or '0', '^%d+')) < tonumber(string.match(ARGV[5], '^%d+')) and -3 or -2
end
for first = 6, #ARGV, 1000 do
  local acked = call('XACK', stream, consumer, unpack(ARGV, first, math.min(first + 999, #ARGV)))
  if acked > 0 then call('HINCRBY', runk, 'acked:' .. consumer, acked) end
end

local function less(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  if a1 ~= b1 then return tonumber(a1) < tonumber(b1) end
  return tonumber(a2) < tonumber(b2)
end

-- The first entry that a consumer still needs; behind the last delivered one, if all delivered ones are acknowledged.
local keep, drained = nil, true
local newest = call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
for _, info in ipairs(call('XINFO', 'GROUPS', stream)) do
  local g = {}
  for i = 1, #info, 2 do g[info[i]] = info[i + 1] end
  local need
  if g['pending'] > 0 then
    need = call('XPENDING', stream, g['name'])[2]
    drained = false
  else
    local ms, seq = string.match(g['last-delivered-id'], '(%d+)-(%d+)')
    need = ms .. '-' .. (tonumber(seq) + 1)
    if newest and less(g['last-delivered-id'], newest[1]) then drained = false end
  end
  if not keep or less(need, keep) then keep = need end
end
if keep then call('XTRIM', stream, 'MINID', keep) end

local h = call('HMGET', runk, 'state', 'rows', 'samples', 'ended')
if h[1] == 'done' then return 1 end
local ended = tonumber(h[4] or 0) == tonumber(h[2] or 0) * tonumber(h[3])
if not drained or not ((h[1] == 'closed' and ended) or h[1] == 'cancelled') or call('SCARD', P .. 'live:' .. run) > 0 then
  return 0
end
call('HSET', runk, 'state', 'done')
call('LREM', P .. 'open', 0, run)
call('ZREM', P .. 'runs', run)
for _, kind in ipairs({'run:', 'rows:', 'chunks:', 'groups:', 'skip:', 'cancel:', 'out:'}) do
  call('EXPIRE', P .. kind .. run, ttl)
end
return 1
