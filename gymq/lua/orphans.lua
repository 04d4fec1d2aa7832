-- Find who reads mailboxes and stands in no registry: a worker enters it before it reads, so whoever does not is dead.
-- (One that was declared dead and does not know it yet may still take mail, under a name that was handed back already.)
--
-- KEYS[1]  the shard's prefix; with it: m:<mailbox>, m:<mailbox>:retry STREAM mail; workers HASH worker -> what it is
-- ARGV[1..]  mailboxes
-- Returns their names.
local P = KEYS[1]
local call = redis.call
local out, seen = {}, {}
for i = 1, #ARGV do
  for _, stream in ipairs({P .. 'm:' .. ARGV[i] .. ':retry', P .. 'm:' .. ARGV[i]}) do
    for _, info in ipairs(call('XINFO', 'CONSUMERS', stream, 'g')) do
      local name = info[2]
      if not seen[name] and call('HEXISTS', P .. 'workers', name) == 0 then
        seen[name] = true
        out[#out + 1] = name
      end
    end
  end
end
return out
