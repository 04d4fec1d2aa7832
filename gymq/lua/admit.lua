-- Start rollouts while their runs have credits: runs in turn, rows in order, all samples of a row one after another.
--
-- KEYS[1]  the shard's prefix; with it:
--   open         LIST    runs that have something to admit
--   paused       STRING  exists while nothing may be admitted
--   run:<run>    HASH    state, cursor, rows, samples, concurrency, backlog, partial
--   rows:<run>   HASH    row -> task
--   skip:<run>   SET     rollouts that need not be done again
--   live:<run>   SET     rollouts in flight
--   groups:<run> HASH    row -> members ended
--   out:<run>    STREAM  finished rollouts that some consumer has not acknowledged
--   r:<rollout>  HASH    version 0
--   m:agent      STREAM  mail of the agents
-- ARGV[1]  how many to admit at most, ARGV[2] up to how many bytes a task travels in the mail
-- Returns how many were admitted.
local P = KEYS[1]
local call = redis.call
local left, inline = tonumber(ARGV[1]), tonumber(ARGV[2])
if call('EXISTS', P .. 'paused') == 1 then return 0 end
local count = call('LLEN', P .. 'open')
local admitted = 0
for turn = 1, count do
  if left <= 0 then break end
  local run = call('RPOPLPUSH', P .. 'open', P .. 'open')
  local runk = P .. 'run:' .. run
  local h = call('HMGET', runk, 'state', 'cursor', 'rows', 'samples', 'concurrency', 'backlog', 'partial')
  local state, cursor, samples = h[1], tonumber(h[2] or 0), tonumber(h[4] or 1)
  local total = tonumber(h[3] or 0) * samples
  if not state or state == 'cancelled' or (state == 'closed' and cursor >= total) then
    call('LREM', P .. 'open', 0, run)
  else
    local behind = call('XLEN', P .. 'out:' .. run) - tonumber(h[7] or 0)
    local credit = tonumber(h[5]) - call('SCARD', P .. 'live:' .. run)
    if behind >= tonumber(h[6]) then credit = 0 end
    local quota = math.min(math.ceil(left / (count - turn + 1)), credit, total - cursor)
    local skips = quota > 0 and call('EXISTS', P .. 'skip:' .. run) == 1
    local first = cursor
    local row, task = -1, false
    while quota > 0 and cursor < total do
      local at = math.floor(cursor / samples)
      local rid = run .. '.' .. at .. '.' .. (cursor % samples)
      if at ~= row then
        row = at
        task = call('HGET', P .. 'rows:' .. run, row)
      end
      if skips and call('SISMEMBER', P .. 'skip:' .. run, rid) == 1 then
        call('HINCRBY', runk, 'ended', 1)
        call('HINCRBY', runk, 'n:kept', 1)
        if call('HINCRBY', P .. 'groups:' .. run, row, 1) == samples then
          call('HDEL', P .. 'groups:' .. run, row)
          call('HDEL', P .. 'rows:' .. run, row)
        end
      else
        call('HSET', P .. 'r:' .. rid, 'v', 0)
        call('SADD', P .. 'live:' .. run, rid)
        if task and #task <= inline then
          call('XADD', P .. 'm:agent', '*', 'r', rid, 'v', 0, 't', task)
        else
          call('XADD', P .. 'm:agent', '*', 'r', rid, 'v', 0)
        end
        admitted = admitted + 1
        quota = quota - 1
        left = left - 1
      end
      cursor = cursor + 1
    end
    if cursor > first then call('HSET', runk, 'cursor', cursor) end
  end
end
return admitted
