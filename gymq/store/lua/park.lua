-- Put mail aside that this worker is too old to read, untouched, for workers that can.
--
-- KEYS[1]  the shard's prefix; with it: m:<mailbox>, m:<mailbox>:retry, m:<mailbox>:alone STREAM mail
--   m:<mailbox>:newer  STREAM  mail put aside: s its schema, then its own fields
-- ARGV[1]  msgpack list, each: 1 mailbox  2 stream  3 id  4 schema
-- Returns how many were put aside: mail that was handed back meanwhile is not.
local P = KEYS[1]
local call = redis.call
local parked = 0
for _, m in ipairs(cmsgpack.unpack(ARGV[1])) do
  local entry = call('XRANGE', m[2], m[3], m[3])[1]
  if entry and call('XACK', m[2], 'g', m[3]) == 1 then
    call('XADD', P .. 'm:' .. m[1] .. ':newer', '*', 's', m[4], unpack(entry[2]))
    call('XDEL', m[2], m[3])
    parked = parked + 1
  end
end
return parked
