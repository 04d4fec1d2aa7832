-- Find orphans: readers of mailboxes, and owners of private mailboxes, that are not in the registry. A worker enters it
-- before it reads, so an orphan is dead: it was declared dead, did not know it yet, and took mail under a name that was
-- handed back already. And see whether suspects wait for a quarantine.
--
-- KEYS[1]  the shard's prefix; with it:
--   m:<mailbox>, m:<mailbox>:retry, m:<mailbox>:alone  STREAM  mail
--   workers                                            HASH    worker -> its entry
--   private                                            HASH    worker -> mailboxes whose mail its private mailbox takes
-- ARGV[1..]  mailboxes
-- Returns their names; how many suspects no quarantine has taken.
local P = KEYS[1]
local call = redis.call
local out, seen, waiting = {}, {}, 0
for i = 1, #ARGV do
  local first = P .. 'm:' .. ARGV[i]
  local alone = first .. ':alone'
  for _, stream in ipairs({alone, first .. ':retry', first}) do
    for _, info in ipairs(call('XINFO', 'CONSUMERS', stream, 'g')) do
      local name = info[2]
      if not seen[name] and call('HEXISTS', P .. 'workers', name) == 0 then
        seen[name] = true
        out[#out + 1] = name
      end
    end
  end
  local suspects = call('XLEN', alone)
  if suspects > 0 then waiting = waiting + math.max(0, suspects - call('XPENDING', alone, 'g')[1]) end
end
for _, name in ipairs(call('HKEYS', P .. 'private')) do
  if not seen[name] and call('HEXISTS', P .. 'workers', name) == 0 then out[#out + 1] = name end
end
return {out, waiting}
