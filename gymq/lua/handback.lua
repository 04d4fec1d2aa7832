-- Give a dead worker's mail back to its mailboxes. What was held in a second death is a suspect from then on, and only
-- quarantines read it, one at a time; a death in which it was held alone is a strike.
--
-- KEYS[1]  the shard's prefix; with it:
--   alive:<worker>     STRING  lapses with the worker
--   workers            HASH    worker -> what it is, with "dead" before it from now on, gone when all is handed back
--   m:<mailbox>        STREAM  mail; m:<mailbox>:retry STREAM what was handed back, a = deaths in which it was held;
--                              m:<mailbox>:alone STREAM suspects, k = strikes, w = the last worker that died with it
-- ARGV[1]  worker  ARGV[2] how many messages at most  ARGV[3] "0": it is dead; "1": the worker itself asks, it is alive
--   and leaves in order, which is no death; "2": the worker itself asks, a defect ends it, which is one
-- ARGV[4..] its mailboxes
-- Returns -1 if the worker is alive, else how many messages were handed back (fewer than ARGV[2]: all).
local P = KEYS[1]
local call = redis.call
local worker, most, why = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if why == '0' and call('EXISTS', P .. 'alive:' .. worker) == 1 then return -1 end
local info = call('HGET', P .. 'workers', worker)
-- One that stands in no registry was handed back before, and lived: it took more under its old name, which it then dropped.
local death = (why == '1' or not info) and 0 or 1
if info and string.sub(info, 1, 4) ~= 'dead' then
  call('DEL', P .. 'alive:' .. worker)
  call('HSET', P .. 'workers', worker, 'dead' .. info)
end
local moved = 0
for i = 4, #ARGV do
  local first = P .. 'm:' .. ARGV[i]
  local retry, alone = first .. ':retry', first .. ':alone'
  for _, stream in ipairs({alone, retry, first}) do
    if moved < most and call('EXISTS', stream) == 1 then
      local pending = call('XPENDING', stream, 'g', '-', '+', most - moved, worker)
      for _, p in ipairs(pending) do
        local entry = call('XRANGE', stream, p[1], p[1])[1]
        if entry then
          local fields, was = {}, {a = 0, k = 0, w = ''}
          for j = 1, #entry[2], 2 do
            if was[entry[2][j]] then
              was[entry[2][j]] = entry[2][j + 1]
            else
              fields[#fields + 1] = entry[2][j]
              fields[#fields + 1] = entry[2][j + 1]
            end
          end
          -- What is no number was written by somebody else.
          local deaths, to = (tonumber(was.a) or 0) + death, retry
          if stream == alone or deaths >= 2 then
            to = alone
            fields[#fields + 1] = 'k'
            fields[#fields + 1] = (tonumber(was.k) or 0) + (stream == alone and death or 0)
            fields[#fields + 1] = 'w'
            fields[#fields + 1] = death == 1 and worker or was.w
          end
          fields[#fields + 1] = 'a'
          fields[#fields + 1] = deaths
          -- No mail of ours has so many fields, and unpack would fail: the next worker would die of it, too.
          if #fields <= 4000 then call('XADD', to, '*', unpack(fields)) end
        end
        call('XACK', stream, 'g', p[1])
        call('XDEL', stream, p[1])
        moved = moved + 1
      end
      if moved < most then call('XGROUP', 'DELCONSUMER', stream, 'g', worker) end
    end
  end
end
if moved < most then call('HDEL', P .. 'workers', worker) end
return moved
