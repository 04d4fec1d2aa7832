-- Grant permits of one shared rate limit in the order in which they are asked for, and learn a rate from refusals.
--
-- Besides the stated limits there is one that is learned. It is in force only while refusals follow load, never because of
-- single ones: it begins when of the requests that processes sent freely over some seconds more than SHARE were refused (and
-- FEW more, since few requests show little), at the rate at which they were accepted. Its time is divided into rounds.
-- A round with that many refusals cuts the rate to what was accepted in it, which is the server's limit; never by more than
-- half at once, and without any acceptance not below PROBE. Any other round raises it, by FIRST after a cut and twice as
-- much each time, so that a limit is probed gently and one that is gone is left within seconds. A refusal of a permit that
-- is older than the last cut counts for nothing: its request was sent at the rate of before. The rate ends when it has held
-- no process for a while.
--
-- KEYS[1]  the shard's prefix; with it:
--   rates        SET of names whose hash may exist
--   rate:<name>  HASH  label          what it is the limit of, in words
--                      l:<limit>, t:<limit> level and ms of a bucket
--                      rate, more     the learned rate per second; the share by which the next round raises it
--                      cut, bound     ms of the last cut; ms at which it last held a process
--                      round, sent, no  ms at which the round began; its permits; its refusals
--                      clear, bad     permits since the round's last refusal; the ms of that
--                      by, per        the limit that held a process last, '' the learned one, and its rate
--                      refused, waited  refusals, and seconds that requests waited, since the hash exists
--                      w:<process>    ms at which it was left waiting, and with how many requests
--                      p:<process>    ms, and what it sent freely: requests, refused ones, accepted ones per second
-- ARGV[1]  msgpack [name, process, label, limits, asks, back, waiting, waited, lowest, refused, free, now]:
--   limits   each [name, rate per second, burst]
--   asks     each a list of costs, one per limit
--   back     what is given back: an amount per limit, then a number of permits
--   waiting  requests that wait in the process, the asks among them
--   waited   seconds that requests of the process have waited since its last call
--   lowest   the learned rate never falls below this
--   refused  the ms of each permit that was refused since the last call, 0: it was sent freely
--   free     nil, or what the process sent freely of late: [requests, refused ones, accepted ones per second]
--   now      nil: by the server's clock; else ms, so that tests need not wait
-- Returns how many asks are granted; ms until asking again makes sense; the ms; the learned rate, '': none is in force; the limit
-- that holds the next ask back, '': none does, and its rate.
local P = KEYS[1]
local call = redis.call
local a = cmsgpack.unpack(ARGV[1])
local key, process, label, limits, asks, back = P .. 'rate:' .. a[1], a[2], a[3], a[4], a[5], a[6]
local waiting, waited, lowest, refused, free, now = a[7], a[8], a[9], a[10], a[11], a[12]

local SHARE, FEW = 0.2, 3 -- refusals that a server's mere hiccups do not reach: 10 % of 20 requests do so once in 400 rounds
local WINDOW = 10000 -- ms for which what a process sent freely counts
local ROUND = 1000 -- ms of a round at least: servers seldom count over less than a second
local ENOUGH = 20 -- permits of a round with refusals at least, unless it is LONG
local DOUBT = 2 -- permits that may be on their way: so few that were not refused say nothing
local LONG = 60000 -- ms of a round at most
local PROBE = 0.5 -- permits a second while none is accepted: a server that is back is noticed within seconds
local LEAST = 1 / 60 -- permits a second at least
local FIRST, LAST = 0.05, 3 -- the share by which a round raises the rate: after a cut, and at most
local QUIET = 10000 -- ms without holding a process after which the learned rate ends
local BURST = 0.5 -- seconds of the learned rate that may be used at once
local FRESH = 4000 -- ms for which a process that was left waiting counts as waiting: it asks again within LATEST
local SOONEST, LATEST = 50, 2000 -- ms until a waiting process asks again

if not now then
  local t = call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local h = {}
local flat = call('HGETALL', key)
for i = 1, #flat, 2 do h[flat[i]] = flat[i + 1] end
local function num(name) return tonumber(h[name] or 0) end
local set, gone = {}, {}
local function put(name, value)
  if type(value) == 'number' then value = string.format('%.6f', value) end
  h[name] = value
  set[#set + 1] = name
  set[#set + 1] = value
end
if not h.label then
  put('label', label)
  call('SADD', P .. 'rates', a[1])
end
call('PEXPIRE', P .. 'rates', 86400000)
if #refused > 0 then put('refused', num('refused') + #refused) end
if waited > 0 then put('waited', num('waited') + waited) end

-- The learned rate.
local rate = h.rate and num('rate') or nil
local sent, no, clear = num('sent'), num('no'), num('clear')
local function follow_load(requests, refusals) return refusals >= FEW + SHARE * requests end
local function begin_round() put('round', now) sent, no, clear = 0, 0, 0 end
if rate then
  -- What a process sent freely until now was not held by the rate, unless it was counted as the rate began.
  if free and not h['p:' .. process] then rate = rate + free[3] end
  for _, at in ipairs(refused) do
    if at > num('cut') then
      no, clear = no + 1, 0
      put('bad', now)
    end
  end
  local seconds = (now - num('round')) / 1000
  local accepted = math.max(0, sent - no)
  local clears = clear > DOUBT and now - num('bad') >= ROUND
  if seconds * 1000 < ROUND then
    -- It goes on.
  elseif not clears and follow_load(sent, no) then
    if accepted > DOUBT and sent >= ENOUGH then
      -- A rate that held no process says nothing of the rate at which requests were sent.
      rate = math.min(rate, math.max(accepted, math.min(rate * seconds, sent) / 2) / seconds)
      put('more', FIRST) put('cut', now)
      begin_round()
    elseif accepted <= DOUBT and rate > PROBE then
      rate = math.max(PROBE, rate / 2)
      put('more', LAST) put('cut', now)
      begin_round()
    elseif seconds * 1000 >= LONG then
      begin_round()
    end
    rate = math.max(rate, LEAST, lowest)
  elseif clears or sent >= ENOUGH or seconds * 1000 >= LONG then
    if num('bound') >= num('round') then
      rate = rate * (1 + num('more'))
      put('more', math.min(LAST, num('more') * 2))
    end
    begin_round()
  end
  if now - math.max(num('cut'), num('bound')) > QUIET then rate = nil end
elseif free then
  put('p:' .. process, string.format('%d %.0f %.0f %.6f', now, free[1], free[2], free[3]))
  local requests, refusals, accepted = 0, 0, 0
  for name, value in pairs(h) do
    if string.sub(name, 1, 2) == 'p:' then
      local at, all, bad, good = string.match(value, '(%d+) (%d+) (%d+) (%S+)')
      if now - at <= WINDOW then
        requests, refusals, accepted = requests + all, refusals + bad, accepted + good
      else
        gone[#gone + 1] = name
      end
    end
  end
  if follow_load(requests, refusals) then
    rate = math.max(accepted, PROBE, lowest)
    put('more', accepted > 0 and FIRST or LAST)
    put('cut', now) put('bound', now)
    put('l:', 0) put('t:', now)
    begin_round()
  end
end
if h.rate and not rate then
  for name in pairs(h) do
    if string.sub(name, 1, 2) == 'p:' then gone[#gone + 1] = name end
  end
  for _, name in ipairs({'rate', 'more', 'cut', 'bound', 'round', 'sent', 'no', 'clear', 'bad', 'l:', 't:'}) do
    gone[#gone + 1] = name
  end
end
if rate then put('rate', rate) end

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
      most, slow, which = missing / bucket[2], cost(ask, i) / bucket[2], bucket
    end
  end
  return which, most * 1000, slow * 1000
end

-- Other waiting processes get an equal share of the permits that are there.
local me = 'w:' .. process
local others = 0
for name, value in pairs(h) do
  if string.sub(name, 1, 2) == 'w:' and name ~= me then
    if now - string.match(value, '%d+') <= FRESH then
      others = others + 1
    else
      gone[#gone + 1] = name
    end
  end
end
local granted, wait, holds = 0, 0, nil
if #asks > 0 then
  local before = {}
  for i, bucket in ipairs(buckets) do before[i] = bucket.level end
  for _, ask in ipairs(asks) do
    holds = lack(ask) -- also where it is the others' share that holds more of them
    if holds then break end
    granted = granted + 1
    for i, bucket in ipairs(buckets) do bucket.level = bucket.level - cost(ask, i) end
  end
  if others > 0 then granted = math.min(granted, math.ceil(granted / (others + 1))) end
  for i, bucket in ipairs(buckets) do
    bucket.level = before[i]
    for n = 1, granted do bucket.level = bucket.level - cost(asks[n], i) end
  end
  if granted < #asks then
    local _, soon, each = lack(asks[granted + 1])
    -- A process that got permits comes again when the others had theirs.
    if granted > 0 then soon = soon + others * each end
    wait = math.min(LATEST, math.max(SOONEST, soon))
    if holds then
      put('by', holds[1]) put('per', holds[2])
      if holds[1] == '' then put('bound', now) end
    end
  end
end
if granted < #asks then
  put(me, string.format('%d %d', now, waiting - granted))
elseif h[me] then
  gone[#gone + 1] = me
end
local keep = 120000
for _, bucket in ipairs(buckets) do
  put('l:' .. bucket[1], bucket.level)
  put('t:' .. bucket[1], now)
  keep = math.max(keep, (bucket[3] - bucket.level) / bucket[2] * 1000)
end
if rate then put('sent', sent + granted) put('no', no) put('clear', clear + granted) end
if #set > 0 then
  call('HSET', key, unpack(set))
  call('PEXPIRE', key, math.ceil(math.min(keep, 86400000)))
end
if #gone > 0 then call('HDEL', key, unpack(gone)) end
local by, per = '', '0'
if holds then by, per = holds[1] == '' and 'learned' or holds[1], string.format('%.6f', holds[2]) end
return {granted, math.ceil(wait), now, rate and string.format('%.6f', rate) or '', by, per}
