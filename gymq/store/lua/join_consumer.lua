-- Make a process a member of a consumer, in a new epoch: what the member had before it belongs to it, and the process that was
-- the member can neither read on nor acknowledge. Other members are untouched.
--
-- KEYS[1]  the shard's prefix; with it:
--   run:<run>  HASH  from:<consumer>, acked:<consumer>, member:<consumer>:<member> its epoch, to:<consumer> where its file sink
--                    writes, as <host>:<path>
--   skip:<run> SET   rollouts of an earlier life of the run
-- ARGV[1]  run  ARGV[2] consumer  ARGV[3] member  ARGV[4] the least number of the epoch  ARGV[5] the epoch's token
-- ARGV[6]  where it writes, "" if it is no file sink  ARGV[7] how many rollouts stand there, -1 if that is not known  ARGV[8] the newest of
--   them: if it is of an earlier life, its commit number tells nothing of this one
-- A file on another host is welcome if it holds what the consumer has acknowledged: it is the same file, or as good.
-- Returns the epoch's number (-1: no such consumer, 0: refused, for it writes elsewhere), where it wrote before, how many
-- rollouts the consumer has acknowledged, 1 if the newest is of an earlier life.
local P = KEYS[1]
local call = redis.call
local runk, consumer, place = P .. 'run:' .. ARGV[1], ARGV[2], ARGV[6]
local field = 'member:' .. consumer .. ':' .. ARGV[3]
local h = call('HMGET', runk, 'from:' .. consumer, 'to:' .. consumer, 'acked:' .. consumer, field)
if not h[1] then return {-1, '', 0, 0} end
local before, acked = h[2] or '', tonumber(h[3] or 0)
if place ~= '' and before ~= '' and before ~= place then
  local same = string.match(before, ':(.*)') == string.match(place, ':(.*)')
  if not same or tonumber(ARGV[7]) < acked then return {0, before, acked, 0} end
end
local number = math.max(tonumber(string.match(h[4] or '0', '^%d+')) + 1, tonumber(ARGV[4]))
call('HSET', runk, field, number .. '-' .. ARGV[5])
if place ~= '' then call('HSET', runk, 'to:' .. consumer, place) end
return {number, before, acked, call('SISMEMBER', P .. 'skip:' .. ARGV[1], ARGV[8])}
