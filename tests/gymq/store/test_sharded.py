"""Shards: rows dealt out in turn keep their numbers, a run is the sum of its parts, and a server is one shard for good."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymq.errors import UnknownName, UsageError
from gymq.settings import Settings
from gymq.store import runs, scripts
from gymq.store.runs import RunConfig
from gymq.store.sharded import Shards, reach
from gymq.store.task_ledger import TaskLedger, deal
from gymq.wire.ids import place
from gymq.wire.task import Task
from tests.support.rollouts import BORN, Pretender, acknowledge


@given(shards=st.integers(1, 7), chunks=st.lists(st.integers(0, 12), max_size=8))
def test_rows_have_the_numbers_of_their_places_whatever_the_chunks(shards, chunks):
    held: list[list[int]] = [[] for _ in range(shards)]
    before = 0
    for size in chunks:
        for shard, part in enumerate(deal(list(range(before, before + size)), before, shards)):
            held[shard] += part
        before += size
    for shard, rows in enumerate(held):
        assert [local * shards + shard for local in range(len(rows))] == rows


@pytest.fixture
async def shards(redis_url):
    """Two shards: two databases of one server."""
    async with Shards(Settings(redis_url=f"{redis_url},{redis_url[:-1]}1", liveness=1.0), "test") as shards:
        yield shards


def config(**fields: object) -> RunConfig:
    return RunConfig("r", "weather", "tool", "scripted", **fields)


def tasks(count: int) -> list[Task]:
    return [Task(f"t{n}", "weather", []) for n in range(count)]


async def test_a_shards_rows_and_rollouts_carry_the_numbers_of_all(shards):
    await shards.create(config(samples=2, concurrency=5, backlog=9))
    book = TaskLedger(shards.connections, "r")
    assert await book.write("a", tasks(3), 0) == 3
    assert await book.write("a", tasks(3), 0) == 0
    assert await book.write("b", tasks(2), 3) == 2
    sizes = [{name: content.rows for name, content in chunks.items()} for chunks in await book.chunks()]
    assert sizes == [{"a": 2, "b": 1}, {"a": 1, "b": 1}]
    admitted: list[set[str]] = []
    for connection in shards.connections:
        assert await connection.send("HMGET", connection.keys.run("r"), "concurrency", "backlog") == [b"3", b"5"]
        await connection.run(scripts.admit(100, 4096, 100, 1 << 40, 60_000))
        admitted.append({place(rid.decode()) for rid in await connection.send("SMEMBERS", connection.keys.live("r"))})
        await connection.send("HSET", connection.keys.run("r"), "concurrency", 100)
        await connection.run(scripts.admit(100, 4096, 100, 1 << 40, 60_000))
    # The first three of each: half of the concurrency, rounded up.
    assert admitted == [{"r.0.0", "r.0.1", "r.2.0"}, {"r.1.0", "r.1.1", "r.3.0"}]
    rows = [
        {int(row) for row in await connection.send("HKEYS", connection.keys.rows("r"))} for connection in shards.connections
    ]
    assert rows == [{0, 2, 4}, {1, 3}]


async def test_single_rows_go_to_different_shards_and_to_the_same_when_written_again(shards):
    await shards.create(config())
    book = TaskLedger(shards.connections, "r")
    for name in "abcdefgh" * 2:
        await book.write(name, tasks(1))
    rows = [len(chunks) for chunks in await book.chunks()]
    assert sum(rows) == 8 and all(rows)


async def test_a_run_is_done_when_it_is_done_on_every_shard(shards):
    await shards.create(config(created=BORN))
    assert await shards.declare("r", "sink") == 0
    await TaskLedger(shards.connections, "r").write("a", tasks(3), 0)
    assert (await shards.status("r")).state == "open"
    await shards.close_run("r")
    for connection, rows in zip(shards.connections, ([0, 2], [1]), strict=True):
        assert (await shards.status("r")).state == "closed"
        agent = Pretender(connection, config())
        await connection.run(scripts.admit(100, 4096, 100, 1 << 40, 60_000))
        agent.live = [f"r.{row}.0" for row in rows]
        await agent.end(*agent.live)
        entries = [entry for entry, _ in await connection.send("XRANGE", connection.keys.results("r"), "-", "+")]
        await connection.send("XREADGROUP", "GROUP", "sink", "x", "STREAMS", connection.keys.results("r"), ">")
        await acknowledge(connection, "r", "sink", entries)
    found = await shards.status("r")
    assert (found.state, found.rows, found.ended, found.by_status, found.unread) == (
        "done",
        3,
        3,
        {"completed": 3},
        {"sink": 0},
    )
    assert await shards.names() == []


async def test_a_run_is_cancelled_and_removed_everywhere(shards):
    await shards.create(config())
    assert await shards.names() == ["r"]
    await TaskLedger(shards.connections, "r").write("a", tasks(4), 0)
    for connection in shards.connections:
        await connection.run(scripts.admit(100, 4096, 100, 1 << 40, 60_000))
    assert await shards.cancel("r") == 4
    assert (await shards.status("r")).state == "cancelled"
    await shards.remove("r")
    with pytest.raises(UnknownName):
        await shards.status("r")


async def test_a_run_was_created_at_the_same_time_everywhere_even_if_one_shard_came_later(shards):
    await runs.create(shards.first, config())
    assert await shards.create(config()) is False
    first, second = [await runs.load_config(connection, "r") for connection in shards.connections]
    assert first == second


@pytest.mark.parametrize(
    ("form", "says"),
    [("{b},{a}", r"shard \d of 2, and here it is named as shard \d of 2"), ("{a}", "shard 0 of 2"), ("{b}", "shard 1 of 2")],
)
async def test_a_process_with_another_list_of_shards_is_refused_in_one_line(shards, redis_url, form, says):
    with pytest.raises(UsageError, match=says) as refusal:
        async with Shards(Settings(redis_url=form.format(a=redis_url, b=f"{redis_url[:-1]}1")), "test"):
            pass
    assert "\n" not in str(refusal.value)


async def test_the_same_list_is_welcome_again(shards):
    await shards.connect()


@pytest.mark.parametrize(
    ("policy", "memory"), [("allkeys-lru", 100), ("volatile-ttl", 100), ("allkeys-lru", 0), ("noeviction", 100)]
)
async def test_a_server_that_would_evict_keys_is_refused_at_the_start(settings, connection, policy, memory):
    await connection.send("CONFIG", "SET", "maxmemory-policy", policy, "maxmemory", f"{memory}mb")
    try:
        if policy == "noeviction" or not memory:
            await reach(settings)
        else:
            with pytest.raises(UsageError, match=f"maxmemory-policy, which is {policy}, to noeviction"):
                await reach(settings)
    finally:
        await connection.send("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "0")
