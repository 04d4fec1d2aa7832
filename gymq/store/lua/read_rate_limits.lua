-- Read what all shared rate limits are doing.
--
-- KEYS[1]  the shard's prefix; with it:
--   rates        SET of names whose hash may exist; those whose hash has lapsed are removed
--   rate:<name>  HASH, see acquire_permits.lua
-- ARGV[1]  ms of now, '': the server's clock
-- Returns for each limit, by label: label; learned rate, ''; the limit that held a request last, its rate; requests that wait;
-- seconds that requests waited; refusals.
local P = KEYS[1]
local call = redis.call
local FRESH = 4000 -- ms for which a process that was left waiting counts as waiting; also in acquire_permits.lua

local now = tonumber(ARGV[1])
if not now then
  local t = call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local limits = {}
for _, name in ipairs(call('SMEMBERS', P .. 'rates')) do
  local h, waiting = {}, 0
  local flat = call('HGETALL', P .. 'rate:' .. name)
  for i = 1, #flat, 2 do
    h[flat[i]] = flat[i + 1]
    if string.sub(flat[i], 1, 2) == 'w:' then
      local at, count = string.match(flat[i + 1], '(%d+) (%d+)')
      if now - at <= FRESH then waiting = waiting + count end
    end
  end
  if #flat == 0 then
    call('SREM', P .. 'rates', name)
  else
    limits[#limits + 1] =
      {h.label, h.rate or '', h.by or '', h.per or '0', waiting, h.waited or '0', h.refused or '0'}
  end
end
table.sort(limits, function(one, other) return one[1] < other[1] end)
return limits
