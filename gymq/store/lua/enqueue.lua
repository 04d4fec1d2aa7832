-- Write a chunk of rows into a run's ledger, once.
--
-- KEYS[1]  the shard's prefix; with it:
--   run:<run>     HASH  state, rows, bytes of the tasks in rows:<run>; shards how many there are, shard which one this is:
--                       row n of the shard is n * shards + shard
--   rows:<run>    HASH  row -> task
--   chunks:<run>  HASH  chunk -> rows in it, and a digest of them: `rows:digest`
--   open          LIST  runs that have something to admit
-- ARGV[1] run  ARGV[2] chunk  ARGV[3] how many bytes of unfinished rows the ledger may hold  ARGV[4] the chunk's rows:digest
-- ARGV[5..] encoded tasks
-- Returns how many rows were written (0: the ledger has this chunk), -1 the run takes no rows, -2 the ledger is full, -3 the
-- ledger has this chunk with other rows.
local P = KEYS[1]
local call = redis.call
local run, chunk = ARGV[1], ARGV[2]
local runk = P .. 'run:' .. run
local there = call('HGET', P .. 'chunks:' .. run, chunk)
if there then return there == ARGV[4] and 0 or -3 end
local h = call('HMGET', runk, 'state', 'rows', 'shards', 'shard')
if h[1] ~= 'open' then return -1 end
local rows = #ARGV - 4
local bytes = 0
for i = 1, rows do bytes = bytes + #ARGV[4 + i] end
-- A chunk that is larger than the limit is taken when nothing else is there.
if call('HLEN', P .. 'rows:' .. run) > 0 then
  local held = tonumber(call('HGET', runk, 'bytes') or 0)
  if held + bytes > tonumber(ARGV[3]) then return -2 end
end
local first, shards, shard = tonumber(h[2] or 0), tonumber(h[3] or 1), tonumber(h[4] or 0)
for i = 1, rows do
  call('HSET', P .. 'rows:' .. run, (first + i - 1) * shards + shard, ARGV[4 + i])
end
call('HSET', P .. 'chunks:' .. run, chunk, ARGV[4])
call('HINCRBY', runk, 'rows', rows)
call('HINCRBY', runk, 'bytes', bytes)
call('LREM', P .. 'open', 0, run)
call('LPUSH', P .. 'open', run)
return rows
