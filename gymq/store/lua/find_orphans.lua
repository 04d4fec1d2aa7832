-- Find who reads mailboxes and stands in no registry: a worker enters it before it reads, so whoever does not is dead.
-- (One that was declared dead and does not know it yet may still take mail, under a name that was handed back already.)
-- So is who has a private mailbox and stands in no registry.
-- And see whether suspects wait for a quarantine.
--
-- KEYS[1]  the shard's prefix; with it:
--   m:<mailbox>, m:<mailbox>:retry, m:<mailbox>:alone  STREAM  mail
--   workers                                            HASH    worker -> what it is
--   private                                            HASH    worker -> what its private mailbox is open for
-- ARGV[1..]  mailboxes
-- Returns their names; 1 if there is a suspect that nobody has taken, else 0.
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
  if suspects > 0 and suspects > call('XPENDING', alone, 'g')[1] then waiting = 1 end
end
for _, name in ipairs(call('HKEYS', P .. 'private')) do
  if not seen[name] and call('HEXISTS', P .. 'workers', name) == 0 then out[#out + 1] = name end
end
return {out, waiting}
