-- Read how far a run is, as a member of a consumer needs it before it reads.
--
-- KEYS[1]  the shard's prefix; with it: run:<run> HASH, also member:<consumer>:<member>; live:<run> SET; out:<run> STREAM
-- ARGV[1]  run  ARGV[2] consumer  ARGV[3] member  ARGV[4] its epoch
-- Returns state (false: no such run), rows, samples, ended, rollouts in flight, how the member stands (0 as ARGV[4] says, -1 there
-- is no such consumer, -2 another process is the member now, -3 Redis has lost the epoch), and how many rollouts were delivered
-- to the member and are not acknowledged.
local P = KEYS[1]
local call = redis.call
local run, consumer, member = ARGV[1], ARGV[2], ARGV[3]
local runk, stream = P .. 'run:' .. run, P .. 'out:' .. run
local h = call('HMGET', runk, 'state', 'rows', 'samples', 'ended', 'from:' .. consumer, 'member:' .. consumer .. ':' .. member)
local standing, pending = 0, 0
if not h[5] then
  standing = -1
elseif h[6] ~= ARGV[4] then
  standing = tonumber(string.match(h[6] or '0', '^%d+')) < tonumber(string.match(ARGV[4], '^%d+')) and -3 or -2
elseif call('EXISTS', stream) == 1 then
  for _, info in ipairs(call('XINFO', 'CONSUMERS', stream, consumer)) do
    if info[2] == member then pending = info[4] end
  end
end
return {
  h[1], tonumber(h[2] or 0), tonumber(h[3] or 0), tonumber(h[4] or 0), call('SCARD', P .. 'live:' .. run), standing, pending
}
