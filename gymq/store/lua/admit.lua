-- Start rollouts while their runs have credits: runs in turn, rows in order, all samples of a row one after another.
--
-- KEYS[1]  the shard's prefix; with it:
--   open         LIST    runs that have something to admit
--   paused       STRING  exists while nothing may be admitted
--   run:<run>    HASH    state, paused, cursor, rows, samples, concurrency, backlog, ahead, partial, ended, from:<c>,
--                        acked:<c>, shards, shard, cap, quota, n:failed, n:kept, incarnation
--   rows:<run>   HASH    row -> task
--   skip:<run>   SET     rollouts that need not be done again; complete before the first row
--   cancel:<run> SET     rollouts that were cancelled before they began: their first mail says so
--   live:<run>   SET     rollouts in flight
--   groups:<run> HASH    row -> members ended
--   out:<run>    STREAM  finished rollouts that some consumer has not acknowledged
--   r:<rollout>  HASH    version 0
--   due          ZSET    rollout -> ms
--   m:agent      STREAM  mail of the agents
-- ARGV[1]  how many to admit at most, ARGV[2] up to how many bytes a task travels in the mail, ARGV[3] how many to skip at most
-- ARGV[4]  bytes of a run's finished rollouts beyond which it has to wait for its consumers
-- ARGV[5]  ms after which a rollout is looked at that has not begun
-- Returns how many were admitted, how many were skipped.
local P = KEYS[1]
local call = redis.call
local left, inline, skippable, heaviest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if call('EXISTS', P .. 'paused') == 1 then return {0, 0} end

-- Count what the slowest consumer has not acknowledged; all that ended, if no consumer is declared.
local function unread(run, runk)
  local stream = P .. 'out:' .. run
  local h = call('HMGET', runk, 'ended', 'n:kept')
  local made, most = tonumber(h[1] or 0) - tonumber(h[2] or 0), nil
  if call('EXISTS', stream) == 1 then
    for _, info in ipairs(call('XINFO', 'GROUPS', stream)) do
      local c = call('HMGET', runk, 'from:' .. info[2], 'acked:' .. info[2])
      most = math.max(most or 0, made - tonumber(c[1] or 0) - tonumber(c[2] or 0))
    end
  end
  return most or made
end

local time = call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[5])
local count = call('LLEN', P .. 'open')
local admitted, skipped = 0, 0
for turn = 1, count do
  if left <= 0 or skipped >= skippable then break end
  local run = call('RPOPLPUSH', P .. 'open', P .. 'open')
  local runk = P .. 'run:' .. run
  local h = call(
    'HMGET', runk, 'state', 'cursor', 'rows', 'samples', 'concurrency', 'backlog', 'partial', 'shards', 'shard', 'paused',
    'ahead', 'cap', 'n:failed', 'quota', 'ended', 'n:kept', 'incarnation'
  )
  local state, cursor, samples = h[1], tonumber(h[2] or 0), tonumber(h[4] or 1)
  local total = tonumber(h[3] or 0) * samples
  if not state or state == 'cancelled' or (state == 'closed' and cursor >= total) then
    call('LREM', P .. 'open', 0, run)
  else
    local flying = call('SCARD', P .. 'live:' .. run)
    local credit = tonumber(h[5]) - flying
    local backlog, partial = tonumber(h[6]), tonumber(h[7] or 0)
    -- The stream's length is cheap and never too small, but counts what stands, acknowledged, behind something that is not.
    local stream, stop = P .. 'out:' .. run, total
    if (call('XLEN', stream) - partial >= backlog and unread(run, runk) - partial >= backlog)
      or (call('MEMORY', 'USAGE', stream) or 0) > heaviest then
      -- The group that has begun is finished all the same: a consumer of whole groups can acknowledge none of it before.
      stop = cursor + (samples - cursor % samples) % samples
    end
    -- A rollout that begins now is used after all that are in flight or unread, and must be young enough then.
    local ahead = tonumber(h[11] or 0)
    if ahead > 0 then
      local before = flying + call('XLEN', stream)
      if before >= ahead then before = flying + unread(run, runk) end
      local last = cursor + math.max(0, ahead - before)
      stop = math.min(stop, last + (samples - last % samples) % samples)
    end
    if h[10] then credit = 0 end
    -- Under a cap a rollout that failed keeps its credit.
    if h[12] then credit = math.min(credit, tonumber(h[12]) - tonumber(h[13] or 0) - flying) end
    -- Under a quota each that ended does, but for those that a file had already.
    if h[14] then credit = math.min(credit, tonumber(h[14]) - tonumber(h[15] or 0) + tonumber(h[16] or 0) - flying) end
    local quota = math.min(math.ceil(left / (count - turn + 1)), credit, stop - cursor)
    local skips = quota > 0 and call('EXISTS', P .. 'skip:' .. run) == 1
    local cancels = quota > 0 and call('EXISTS', P .. 'cancel:' .. run) == 1
    local first = cursor
    -- Rows are numbered over all shards; the cursor counts those of this one.
    local shards, shard = tonumber(h[8] or 1), tonumber(h[9] or 0)
    local row, task = -1, false
    while quota > 0 and cursor < stop and skipped < skippable do
      local at = math.floor(cursor / samples) * shards + shard
      local place = run .. '.' .. at .. '.' .. (cursor % samples)
      local rid = place .. '~' .. (h[17] or '')
      if at ~= row then
        row = at
        task = call('HGET', P .. 'rows:' .. run, row)
        if skips and cursor % samples == 0 then
          -- Those to skip count before any other member can end, so that the group's last is always one that ends.
          local kept = 0
          for sample = 0, samples - 1 do
            kept = kept + call('SISMEMBER', P .. 'skip:' .. run, run .. '.' .. row .. '.' .. sample)
          end
          if kept == samples then
            call('HINCRBY', runk, 'bytes', -call('HSTRLEN', P .. 'rows:' .. run, row))
            call('HDEL', P .. 'rows:' .. run, row)
          elseif kept > 0 then
            call('HSET', P .. 'groups:' .. run, row, kept)
            call('HINCRBY', runk, 'partial', kept)
          end
        end
      end
      if skips and call('SISMEMBER', P .. 'skip:' .. run, place) == 1 then
        call('HINCRBY', runk, 'ended', 1)
        call('HINCRBY', runk, 'n:kept', 1)
        skipped = skipped + 1
      else
        call('HSET', P .. 'r:' .. rid, 'v', 0)
        call('SADD', P .. 'live:' .. run, rid)
        call('ZADD', P .. 'due', due, rid)
        if cancels and call('SREM', P .. 'cancel:' .. run, place) == 1 then
          call('XADD', P .. 'm:agent', '*', 'r', rid, 'v', 0, 'x', 'rollout')
        elseif task and #task <= inline then
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
return {admitted, skipped}
