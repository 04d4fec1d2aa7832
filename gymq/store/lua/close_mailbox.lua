-- Close a worker's private mailbox: no mail is sent there any more, and mail that the worker has not taken goes to other
-- workers, which counts as no attempt. Mail that it has taken stays until it is answered or handed back.
--
-- KEYS[1]  the shard's prefix; with it:
--   private            HASH    worker -> mailboxes whose mail its private mailbox takes: empty from now on
--   m:@<worker>        STREAM  private mail, m = the mailbox that it was meant for
--   m:<mailbox>:retry  STREAM  handed-back mail, read first
-- ARGV[1]  worker  ARGV[2] how many messages at most
-- Returns how many messages were moved (fewer than ARGV[2]: all).
local P = KEYS[1]
local call = redis.call
local own = P .. 'm:@' .. ARGV[1]
if call('EXISTS', own) == 0 then return 0 end
call('HSET', P .. 'private', ARGV[1], '')
local last
for _, group in ipairs(call('XINFO', 'GROUPS', own)) do
  for i = 1, #group, 2 do
    if group[i] == 'last-delivered-id' then last = group[i + 1] end
  end
end
local entries = call('XRANGE', own, '(' .. (last or '0'), '+', 'COUNT', ARGV[2])
for _, entry in ipairs(entries) do
  local fields, box = {}, nil
  for j = 1, #entry[2], 2 do
    if entry[2][j] == 'm' then
      box = entry[2][j + 1]
    else
      fields[#fields + 1] = entry[2][j]
      fields[#fields + 1] = entry[2][j + 1]
    end
  end
  -- Without a mailbox, or with more fields than unpack can take, the entry is no mail.
  if box and #fields > 0 and #fields <= 4000 then call('XADD', P .. 'm:' .. box .. ':retry', '*', unpack(fields)) end
  call('XDEL', own, entry[1])
end
return #entries
