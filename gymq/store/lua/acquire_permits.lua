-- Grant permits of one shared rate limit in the order in which they are asked for, and learn from refusals.
--
-- Besides the configured rates there is one that is learned. It exists from the first refusal on, and only processes that
-- met a refusal ask for it. It doubles every second until a permit of its own is refused; from then on it is halved by a
-- refusal and climbs as TCP's CUBIC does: fast at first, flat around the rate at which it was refused, then ever faster.
-- A refusal of a permit that is older than the last cut cuts nothing: a hundred that fail together count once.
--
-- KEYS[1]  the shard's prefix; with it:
--   rate:<name>  HASH  l:<limit>, t:<limit> level and ms of a bucket
--                      rate, since, top, cut, bound  the learned rate: per second at the ms `since`; where it was refused, 0:
--                                                    nowhere yet; ms of the last cut; ms at which it last held a process
--                      sent, sentat                  permits granted, fading over SPAN: how much is really sent
--                      until                         no permits before this ms
--                      w:<process>                   ms at which it was left waiting
-- ARGV[1]  msgpack [name, process, limits, asks, back, refusal]:
--   limits   each [name, rate per second, burst]
--   asks     each a list of costs, one per limit
--   back     what is given back: an amount per limit, then a number of permits
--   refusal  missing, or [ms of the refused permit, ms in which no process may ask, true: this process asked for no permits,
--            its answers per second]
-- Returns how many asks are granted; ms until asking again makes sense; the server's ms; 1 while a learned rate or `until` holds.
local P = KEYS[1]
local call = redis.call
local a = cmsgpack.unpack(ARGV[1])
local key, me, limits, asks, back, refusal = P .. 'rate:' .. a[1], 'w:' .. a[2], a[3], a[4], a[5], a[6]

local INTERVAL = 1000 -- ms between two cuts at least: servers seldom count over less than a second
local CUT = 0.5
local CLIMB = 10 -- seconds from a cut back to where it was
local SPAN = 2 -- seconds over which `sent` fades
local QUIET = 30000 -- ms without a refusal, and without holding a process, after which the learned rate ends
local BURST = 0.5 -- seconds of the learned rate that may be used at once
local FRESH = 4000 -- ms for which a process that was left waiting counts as waiting: it asks again within LATEST
local SOONEST, LATEST = 50, 2000 -- ms until a waiting process asks again

local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local h = {}
local flat = call('HGETALL', key)
for i = 1, #flat, 2 do h[flat[i]] = flat[i + 1] end
local function num(name) return tonumber(h[name] or 0) end
local set, gone = {}, {}
local function put(name, value)
  h[name] = value
  set[#set + 1] = name
  set[#set + 1] = string.format('%.6f', value)
end

-- The learned rate.
local rate = nil
local function learned()
  local seconds = math.min(math.max(0, now - num('since')) / 1000, 60)
  local top = num('top')
  if top == 0 then return num('rate') * 2 ^ math.min(seconds, 30) end
  return top + math.max(top - num('rate'), 0.1 * top) * (seconds / CLIMB - 1) ^ 3
end
if h.rate then rate = learned() end
local sent = num('sent') * math.exp(-math.max(0, now - num('sentat')) / 1000 / SPAN)
if refusal then
  local at, pause, fresh, answers = refusal[1], refusal[2], refusal[3], refusal[4]
  if pause > 0 then put('until', math.max(num('until'), now + pause)) end
  if not rate then
    rate = math.max(1, answers * CUT)
    put('top', 0) put('cut', now) put('bound', now)
    put('rate', rate) put('since', now)
    put('l:', 0) put('t:', now)
  elseif fresh then
    -- What this process sent so far was not counted in the rate.
    local more = math.max(1, answers * CUT)
    if num('top') > 0 then put('top', num('top') + more) end
    rate = rate + more
    put('rate', rate) put('since', now)
  elseif at > num('cut') and now - num('cut') >= INTERVAL then
    -- A rate that held no process says nothing of the rate at which requests were sent.
    if now - num('bound') > INTERVAL then rate = math.min(rate, sent / SPAN) end
    rate = math.max(rate, 1 / 60)
    put('top', rate)
    rate = rate * CUT
    put('rate', rate) put('since', now) put('cut', now)
  end
elseif rate and now - math.max(num('cut'), num('bound'), num('until')) > QUIET then
  rate = nil
  for _, name in ipairs({'rate', 'since', 'top', 'cut', 'bound', 'sent', 'sentat', 'until', 'l:', 't:'}) do
    h[name] = nil
    gone[#gone + 1] = name
  end
end

-- The buckets; the learned rate's is the last, a permit costs it 1.
local buckets = {}
for i, limit in ipairs(limits) do buckets[i] = {limit[1], limit[2], limit[3]} end
if rate then buckets[#buckets + 1] = {'', rate, math.max(1, rate * BURST)} end
for i, bucket in ipairs(buckets) do
  local name, per, burst = bucket[1], bucket[2], bucket[3]
  local level = h['l:' .. name] and num('l:' .. name) or burst
  level = level + per * math.max(0, now - (h['t:' .. name] and num('t:' .. name) or now)) / 1000
  bucket.level = math.min(burst, level + (back[name == '' and #limits + 1 or i] or 0))
end
local function cost(ask, i) return i > #limits and 1 or ask[i] end
-- A permit that costs more than a bucket holds is granted by a full bucket, and leaves a debt.
local function lack(ask)
  local most, slow, which = 0, 0, nil
  for i, bucket in ipairs(buckets) do
    local missing = math.min(cost(ask, i), bucket[3]) - bucket.level
    if missing > 1e-6 and missing / bucket[2] >= most then
      most, slow, which = missing / bucket[2], cost(ask, i) / bucket[2], bucket[1]
    end
  end
  return which, most * 1000, slow * 1000
end

-- Other waiting processes get an equal share of the permits that are there.
local others = 0
for name, value in pairs(h) do
  if string.sub(name, 1, 2) == 'w:' and name ~= me then
    if now - tonumber(value) <= FRESH then
      others = others + 1
    else
      gone[#gone + 1] = name
    end
  end
end
local granted, wait = 0, 0
if num('until') > now then
  wait = num('until') - now
elseif #asks > 0 then
  local possible = 0
  local before = {}
  for i, bucket in ipairs(buckets) do before[i] = bucket.level end
  for _, ask in ipairs(asks) do
    if lack(ask) then break end
    possible = possible + 1
    for i, bucket in ipairs(buckets) do bucket.level = bucket.level - cost(ask, i) end
  end
  granted = possible
  if others > 0 then granted = math.min(possible, math.ceil(possible / (others + 1))) end
  for i, bucket in ipairs(buckets) do
    bucket.level = before[i]
    for n = 1, granted do bucket.level = bucket.level - cost(asks[n], i) end
  end
  if granted < #asks then
    local which, soon, each = lack(asks[granted + 1])
    -- A process that got permits comes again when the others had theirs.
    if granted > 0 then soon = (soon or 0) + others * (each or 0) end
    wait = math.min(LATEST, math.max(SOONEST, soon or 0))
    if which == '' then put('bound', now) end
  end
end
if granted < #asks then put(me, now) elseif h[me] then gone[#gone + 1] = me end
local keep = 120000
for _, bucket in ipairs(buckets) do
  put('l:' .. bucket[1], bucket.level)
  put('t:' .. bucket[1], now)
  keep = math.max(keep, (bucket[3] - bucket.level) / bucket[2] * 1000)
end
if rate then
  put('sent', sent + granted)
  put('sentat', now)
end
if #gone > 0 then call('HDEL', key, unpack(gone)) end
if #set > 0 then
  call('HSET', key, unpack(set))
  call('PEXPIRE', key, math.ceil(math.min(keep, 86400000)))
end
return {granted, math.ceil(wait), now, (rate or num('until') > now) and 1 or 0}
