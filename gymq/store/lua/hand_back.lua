-- Hand a worker's mail back to its mailboxes. Mail that was held in a second death is a suspect from then on, and only
-- quarantines read it, one message at a time; a death in which it was held alone is a strike. Mail in the worker's private
-- mailbox goes too, taken or not, and then the private mailbox is deleted.
--
-- KEYS[1]  the shard's prefix; with it:
--   alive:<worker>     STRING  lapses with the worker
--   workers            HASH    worker -> its entry, with "dead" before it from now on, gone when all is handed back
--   private            HASH    worker -> mailboxes whose mail its private mailbox takes: empty from now on; gone with the stream
--   m:@<worker>        STREAM  private mail, m = the mailbox that it was meant for
--   m:<mailbox>        STREAM  mail; m:<mailbox>:retry STREAM handed-back mail, a = deaths in which it was held;
--                              m:<mailbox>:alone STREAM suspects, k = strikes, w = the last worker that died with it
-- ARGV[1]  worker  ARGV[2] how many messages at most  ARGV[3] "0": it is dead; "1": the worker itself asks, it is alive
--   and leaves in order, which is no death; "2": the worker itself asks, a defect ends it, which is one; "3": it is dead since
--   an outage, which is none
-- ARGV[4..] its mailboxes
-- Returns -1 if the worker is alive, else how many messages were handed back (fewer than ARGV[2]: all).
local P = KEYS[1]
local call = redis.call
local worker, most, why = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if (why == '0' or why == '3') and call('EXISTS', P .. 'alive:' .. worker) == 1 then return -1 end
local info = call('HGET', P .. 'workers', worker)
-- One that stands in no registry was handed back before, and lived: it took more under its old name, which it then dropped.
local death = (why == '1' or why == '3' or not info) and 0 or 1
if info and string.sub(info, 1, 4) ~= 'dead' then
  call('DEL', P .. 'alive:' .. worker)
  call('HSET', P .. 'workers', worker, 'dead' .. info)
end
local own = P .. 'm:@' .. worker
local private = call('EXISTS', own) == 1
if private then call('HSET', P .. 'private', worker, '') end
local moved = 0

-- Move one entry; `box` is its mailbox if that is known, `more` the deaths that are added to those in which it was held.
local function move(stream, entry, box, more)
  local fields, was = {}, {a = 0, k = 0, w = ''}
  for j = 1, #entry[2], 2 do
    local name, value = entry[2][j], entry[2][j + 1]
    if was[name] then
      was[name] = value
    elseif name == 'm' and not box then
      box = value
    else
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  -- Fields that are no numbers were written by another program.
  local deaths, strikes = (tonumber(was.a) or 0) + more, tonumber(was.k) or 0
  -- An entry without a mailbox, or with so many fields, is no mail; unpack would fail, and kill the next worker too.
  if not box or #fields == 0 or #fields > 4000 then return end
  local first = P .. 'm:' .. box
  local to, alone = first .. ':retry', first .. ':alone'
  if stream == alone or deaths >= 2 then
    to = alone
    fields[#fields + 1] = 'k'
    fields[#fields + 1] = strikes + (stream == alone and more or 0)
    fields[#fields + 1] = 'w'
    fields[#fields + 1] = more == 1 and worker or was.w
  end
  fields[#fields + 1] = 'a'
  fields[#fields + 1] = deaths
  call('XADD', to, '*', unpack(fields))
end

-- Move the mail that the worker has taken from a stream; `box` as above.
local function give(stream, box)
  for _, p in ipairs(call('XPENDING', stream, 'g', '-', '+', most - moved, worker)) do
    local entry = call('XRANGE', stream, p[1], p[1])[1]
    if entry then move(stream, entry, box, death) end
    call('XACK', stream, 'g', p[1])
    call('XDEL', stream, p[1])
    moved = moved + 1
  end
end

for i = 4, #ARGV do
  local first = P .. 'm:' .. ARGV[i]
  for _, stream in ipairs({first .. ':alone', first .. ':retry', first}) do
    if moved < most and call('EXISTS', stream) == 1 then
      give(stream, ARGV[i])
      if moved < most then call('XGROUP', 'DELCONSUMER', stream, 'g', worker) end
    end
  end
end
if private and moved < most then
  give(own, nil)
  -- Mail that is left was never taken.
  if moved < most then
    for _, entry in ipairs(call('XRANGE', own, '-', '+', 'COUNT', most - moved)) do
      move(own, entry, nil, 0)
      call('XDEL', own, entry[1])
      moved = moved + 1
    end
  end
  if moved < most then
    call('DEL', own)
    call('HDEL', P .. 'private', worker)
  end
end
if moved < most then call('HDEL', P .. 'workers', worker) end
return moved
