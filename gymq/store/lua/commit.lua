-- Commit steps of rollouts: check, write, send, acknowledge, each step all or nothing.
--
-- KEYS[1]  the shard's prefix; with it:
--   r:<rollout>     HASH    v version, s state, e environment's state, q request, c<step>.<n> pending calls, l calls
--                           left, y<n> replies that wait
--   t:<rollout>     LIST    encoded messages
--   k:<rollout>     LIST    call records
--   m:<mailbox>     STREAM  mail; m:@<worker> STREAM private mail, m = the mailbox that it was meant for
--   private         HASH    worker -> mailboxes whose mail its private mailbox takes; empty: it is closed
--   alive:<worker>  STRING  lapses with the worker
--   due             ZSET    rollout -> ms
--   live:<run>      SET     rollouts in flight
--   groups:<run>    HASH    row -> members ended
--   rows:<run>      HASH    row -> task
--   run:<run>       HASH    counters
--   out:<run>       STREAM  finished rollouts
--   dead            STREAM  dead letters
-- ARGV[1]  msgpack list of commits, each:
--   1 rollout  2 version it was decided on  3 stream and  4 id of the mail to acknowledge
--   5 flat list of hash fields to set; nil: no step, the mail is found to be of no use  6 messages to append  7 call records to append
--   8 list of sends: mailbox, body, and perhaps workers whose private mailboxes are preferred, and a margin: the first
--     worker gets the call, unless its mailbox is longer than the shortest of the others by more than the margin and a
--     quarter; if none is open, the mailbox gets it; all calls of a step that name workers go to the same place
--   9 ms until it is due; without a step: 0, or ms until it is due again, as its mail came too early
--   10 final: nil, or run, row, samples, status, header of the record (JSON without its closing brace), and perhaps
--      a flat list of the run's counters, each followed by its increment
--   11 true: this step must happen (a cancellation): if the version has moved, that is a conflict, not stale
--   12 nil, or the mail's dead letter, seconds for which dead letters are kept from now on
--   13 true: the calls that are pending are given up: late replies will find nothing
--   14 idempotency token of its calls, which their replies must bear; may be missing
-- ARGV[2]  the field of the calls that are sent, which tells their schema; "c" if not given
-- Mail that is not pending any more changes nothing, and stays as it is: it was handed back, or lost in a roll-back with its
-- cause; or only its delivery was lost, and it will be delivered again.
-- Returns a list: 1 applied, 0 stale (the mail is acknowledged, nothing else happens), 2 conflict (nothing happens): also if
-- mail is of use that was found to be of none: what was read has been lost since, in a roll-back.
local P = KEYS[1]
local call = redis.call
local batch = cmsgpack.unpack(ARGV[1])
local out = {}
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Lua's unpack is limited by its stack.
local function append(key, list)
  for first = 1, #list, 1000 do
    call('RPUSH', key, unpack(list, first, math.min(first + 999, #list)))
  end
end

-- A private mailbox holds waiting mail and mail in work: mail is deleted as it is acknowledged.
local function choose(workers, margin)
  local first, ahead, other, behind
  for i = 1, #workers do
    local worker = workers[i]
    if call('HSTRLEN', P .. 'private', worker) > 0 and call('EXISTS', P .. 'alive:' .. worker) == 1 then
      local lies = call('XLEN', P .. 'm:@' .. worker)
      if i == 1 then
        first, ahead = worker, lies
      elseif not behind or lies < behind then
        other, behind = worker, lies
      end
    end
  end
  if not first or (other and ahead > behind + margin + math.floor(behind / 4)) then return other end
  return first
end

for i = 1, #batch do
  local c = batch[i]
  local rid, want = c[1], c[2]
  local rk = P .. 'r:' .. rid
  local v = call('HGET', rk, 'v')
  local outcome, taken = 1, 1
  if not v then
    outcome = 0
  elseif not c[5] then
    local useful = c[11] or tonumber(v) == want
    outcome = useful and c[9] == 0 and 2 or 0
    if useful and c[9] > 0 then call('ZADD', P .. 'due', 'XX', now + c[9], rid) end
  elseif tonumber(v) ~= want then
    outcome = (tonumber(v) > want and not c[11]) and 0 or 2
  end
  if outcome ~= 2 and c[4] ~= '' then
    taken = call('XACK', c[3], 'g', c[4])
    if taken == 1 then call('XDEL', c[3], c[4]) end
  end
  if taken == 0 then outcome = 0 end
  if outcome == 1 then
    local final = c[10]
    append(P .. 't:' .. rid, c[6])
    append(P .. 'k:' .. rid, c[7])
    if c[12] then
      call('XADD', P .. 'dead', '*', 'b', c[12][1])
      call('EXPIRE', P .. 'dead', c[12][2])
    end
    if not final then
      local sends = c[8]
      local fields = c[5]
      local total = #sends
      local n = #fields
      if c[13] then
        for _, field in ipairs(call('HKEYS', rk)) do
          if string.find(field, '^[cy]%d') or field == 'l' then call('HDEL', rk, field) end
        end
      end
      fields[n + 1] = 'v'
      fields[n + 2] = want + 1
      n = n + 2
      local worker
      for j = 1, total do
        local box, field, body = sends[j][1], ARGV[2] or 'c', sends[j][2]
        if sends[j][3] and not worker then worker = choose(sends[j][3], sends[j][4]) end
        if not (sends[j][3] and worker and call('XADD', P .. 'm:@' .. worker, 'NOMKSTREAM', '*', field, body, 'm', box)) then
          call('XADD', P .. 'm:' .. box, '*', field, body)
        end
        fields[n + 1] = 'c' .. (want + 1) .. '.' .. (j - 1)
        fields[n + 2] = c[14] and total .. ' ' .. c[14] or total
        n = n + 2
      end
      if total > 1 then
        fields[n + 1] = 'l'
        fields[n + 2] = total
      end
      call('HSET', rk, unpack(fields))
      call('ZADD', P .. 'due', now + c[9], rid)
    else
      local run, row, samples, status, header = final[1], final[2], final[3], final[4], final[5]
      local runk = P .. 'run:' .. run
      local messages = table.concat(call('LRANGE', P .. 't:' .. rid, 0, -1), ',')
      local calls = table.concat(call('LRANGE', P .. 'k:' .. rid, 0, -1), ',')
      call('DEL', rk, P .. 't:' .. rid, P .. 'k:' .. rid)
      call('ZREM', P .. 'due', rid)
      call('SREM', P .. 'live:' .. run, rid)
      local seq = call('HINCRBY', runk, 'ended', 1)
      call('HINCRBY', runk, 'n:' .. status, 1)
      local used = final[6] or {}
      for j = 1, #used, 2 do call('HINCRBY', runk, used[j], used[j + 1]) end
      local last = 1
      if samples > 1 then
        local ended = call('HINCRBY', P .. 'groups:' .. run, row, 1)
        if ended < samples then
          last = 0
          call('HINCRBY', runk, 'partial', 1)
        else
          call('HDEL', P .. 'groups:' .. run, row)
          call('HINCRBY', runk, 'partial', 1 - samples)
        end
      end
      if last == 1 then
        call('HINCRBY', runk, 'bytes', -call('HSTRLEN', P .. 'rows:' .. run, row))
        call('HDEL', P .. 'rows:' .. run, row)
      end
      call('XADD', P .. 'out:' .. run, '*', 'r', string.match(rid, '^[^~]*'), 'l', last, 'n', seq, 'b',
        header .. ',"seq":' .. seq .. ',"messages":[' .. messages .. '],"calls":[' .. calls .. ']}')
    end
  end
  out[i] = outcome
end
return out
