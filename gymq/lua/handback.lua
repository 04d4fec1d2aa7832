-- Give a dead worker's mail back to its mailboxes.
--
-- KEYS[1]  the shard's prefix; with it:
--   alive:<worker>     STRING  lapses with the worker
--   workers            HASH    worker -> what it is, with "dead" before it from now on, gone when all is handed back
--   m:<mailbox>        STREAM  mail; m:<mailbox>:retry STREAM what was handed back, a = deliveries before
-- ARGV[1]  worker  ARGV[2] how many messages at most  ARGV[3] "1": the worker itself asks, it is alive and leaving
-- ARGV[4..] its mailboxes
-- Returns -1 if the worker is alive, else how many messages were handed back (fewer than ARGV[2]: all).
local P = KEYS[1]
local call = redis.call
local worker, most, leaving = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
if not leaving and call('EXISTS', P .. 'alive:' .. worker) == 1 then return -1 end
local info = call('HGET', P .. 'workers', worker)
if info and string.sub(info, 1, 4) ~= 'dead' then
  call('DEL', P .. 'alive:' .. worker)
  call('HSET', P .. 'workers', worker, 'dead' .. info)
end
local moved = 0
for i = 4, #ARGV do
  for _, stream in ipairs({P .. 'm:' .. ARGV[i] .. ':retry', P .. 'm:' .. ARGV[i]}) do
    if moved < most and call('EXISTS', stream) == 1 then
      local pending = call('XPENDING', stream, 'g', '-', '+', most - moved, worker)
      for _, p in ipairs(pending) do
        local entry = call('XRANGE', stream, p[1], p[1])[1]
        if entry then
          local fields, attempts = {}, 0
          for j = 1, #entry[2], 2 do
            if entry[2][j] == 'a' then
              attempts = tonumber(entry[2][j + 1]) or 0
            else
              fields[#fields + 1] = entry[2][j]
              fields[#fields + 1] = entry[2][j + 1]
            end
          end
          fields[#fields + 1] = 'a'
          fields[#fields + 1] = attempts + 1
          -- No mail of ours has so many fields, and unpack would fail: the next worker would die of it, too.
          if #fields <= 4000 then call('XADD', P .. 'm:' .. ARGV[i] .. ':retry', '*', unpack(fields)) end
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
