-- Cancel groups and rollouts of a run that goes on: those in flight are ended, those that did not begin are marked.
--
-- KEYS[1]  the shard's prefix; with it:
--   run:<run>     HASH    state, cursor, rows, samples, shards, incarnation
--   live:<run>    SET     rollouts in flight
--   cancel:<run>  SET     rollouts that are cancelled as soon as they are admitted
--   m:agent       STREAM  mail of the agents; x: what was cancelled
-- ARGV[1]  run  ARGV[2..] groups, each the row's number, and rollouts, each <row>.<sample>
-- Returns the run's state (false: no such run), then for each: how many were in flight, how many had not begun, how many
-- there are (0: the run has no such one). Nothing is cancelled unless the run goes on and each exists and has not ended.
local P = KEYS[1]
local call = redis.call
local run = ARGV[1]
local h = call('HMGET', P .. 'run:' .. run, 'state', 'cursor', 'rows', 'samples', 'shards', 'incarnation')
local state, cursor, rows, samples = h[1], tonumber(h[2] or 0), tonumber(h[3] or 0), tonumber(h[4] or 1)
-- Rows are numbered over all shards; the cursor counts those of this one.
local shards = tonumber(h[5] or 1)
local out = {state}
if state ~= 'open' and state ~= 'closed' then return out end
local good, flying, waiting, seen = true, {}, {}, {}
for i = 2, #ARGV do
  local row, sample = string.match(ARGV[i], '^(%d+)%.?(%d*)$')
  local first, last = 0, samples - 1
  if sample ~= '' then first, last = tonumber(sample), tonumber(sample) end
  local found = {0, 0, 0}
  local mine = math.floor(tonumber(row) / shards)
  if mine < rows and last < samples then
    for n = first, last do
      local place = run .. '.' .. row .. '.' .. n
      local rid = place .. '~' .. (h[6] or '')
      found[3] = found[3] + 1
      if call('SISMEMBER', P .. 'live:' .. run, rid) == 1 then
        found[1] = found[1] + 1
        if not seen[rid] then flying[#flying + 1] = {rid, sample == '' and 'group' or 'rollout'} end
        seen[rid] = true
      elseif mine * samples + n >= cursor then
        found[2] = found[2] + 1
        waiting[#waiting + 1] = place
      end
    end
  end
  good = good and found[1] + found[2] > 0
  out[i] = found
end
if good then
  for _, one in ipairs(flying) do
    call('XADD', P .. 'm:agent', '*', 'r', one[1], 'v', 0, 'x', one[2])
  end
  for _, place in ipairs(waiting) do
    call('SADD', P .. 'cancel:' .. run, place)
  end
end
return out
