-- Take up mail that older workers have put aside.
--
-- KEYS[1]  the shard's prefix; with it: m:<mailbox>:newer STREAM mail put aside, m:<mailbox>:retry STREAM read first;
--   m:<mailbox>:alone STREAM suspects: a suspect is one again
-- ARGV[1]  the newest schema that the worker reads  ARGV[2] how many messages of a mailbox to look at  ARGV[3..] its mailboxes
-- Returns how many were taken up, and how many were dropped: entries without a schema are no mail.
local P = KEYS[1]
local call = redis.call
local schema, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local moved, dropped = 0, 0
for i = 3, #ARGV do
  local newer = P .. 'm:' .. ARGV[i] .. ':newer'
  if call('EXISTS', newer) == 1 then
    for _, entry in ipairs(call('XRANGE', newer, '-', '+', 'COUNT', most)) do
      local fields = entry[2]
      local its = fields[1] == 's' and tonumber(fields[2])
      -- No mail has so many fields, and unpack would fail.
      if not its or #fields < 4 or #fields > 4000 then
        call('XDEL', newer, entry[1])
        dropped = dropped + 1
      elseif its <= schema then
        local suspect = fields[#fields - 5] == 'k'
        call('XADD', P .. 'm:' .. ARGV[i] .. (suspect and ':alone' or ':retry'), '*', unpack(fields, 3))
        call('XDEL', newer, entry[1])
        moved = moved + 1
      end
    end
    if call('XLEN', newer) == 0 then call('DEL', newer) end
  end
end
return {moved, dropped}
