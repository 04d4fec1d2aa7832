-- Take mail from several streams in their order, no more than there is room for, without waiting.
--
-- KEYS[1]  the shard's prefix (the streams carry it already)
-- ARGV[1]  worker  ARGV[2] how many messages at most  ARGV[3..] the streams, most urgent first
-- Returns a list like XREADGROUP's: stream, entries.
local left = tonumber(ARGV[2])
local out = {}
for i = 3, #ARGV do
  if left <= 0 then break end
  local reply = redis.call('XREADGROUP', 'GROUP', 'g', ARGV[1], 'COUNT', left, 'STREAMS', ARGV[i], '>')
  if reply then
    out[#out + 1] = reply[1]
    left = left - #reply[1][2]
  end
end
return out
