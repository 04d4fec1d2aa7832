-- Note that mailboxes are served now. A look that is later than the gap after the one before begins a new time of service:
-- in between there was no worker, or the server was away.
--
-- KEYS[1]  the shard's prefix; with it:
--   served  HASH  mailbox -> ms since which it is served without a gap, and ms at which it was served last; lapses
-- ARGV[1] the gap, ms  ARGV[2] ms after which all is forgotten  ARGV[3] "1": return what is served  ARGV[4..] mailboxes
-- Returns the server's ms, and a flat list: mailbox, its times.
local call = redis.call
local key = KEYS[1] .. 'served'
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 4, #ARGV do
  local since, last = string.match(call('HGET', key, ARGV[i]) or '', '^(%d+) (%d+)$')
  -- A server with a slower clock may have taken over.
  if not since or now - last > tonumber(ARGV[1]) or tonumber(since) > now then since = now end
  call('HSET', key, ARGV[i], string.format('%.0f %.0f', since, now))
end
if #ARGV > 3 then call('PEXPIRE', key, ARGV[2]) end
return {now, ARGV[3] == '1' and call('HGETALL', key) or {}}
