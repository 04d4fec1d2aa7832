-- Count what each consumer of a run has not acknowledged.
--
-- KEYS[1]  the shard's prefix; with it: run:<run> HASH ended, acked:<consumer>, from:<consumer>; out:<run> STREAM
-- ARGV[1]  run
-- Returns a flat list: consumer, count.
local P = KEYS[1]
local call = redis.call
local out = {}
local stream = P .. 'out:' .. ARGV[1]
if call('EXISTS', stream) == 0 then return out end
local runk = P .. 'run:' .. ARGV[1]
for _, info in ipairs(call('XINFO', 'GROUPS', stream)) do
  local name = info[2]
  local h = call('HMGET', runk, 'ended', 'n:kept', 'from:' .. name, 'acked:' .. name)
  out[#out + 1] = name
  out[#out + 1] = tonumber(h[1] or 0) - tonumber(h[2] or 0) - tonumber(h[3] or 0) - tonumber(h[4] or 0)
end
return out
