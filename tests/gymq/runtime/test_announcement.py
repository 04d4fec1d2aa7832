"""The announcement of workers that start."""

from __future__ import annotations

import msgspec
import pytest

from gymq.ops.workforce import read_workforce
from gymq.runtime import announcement
from gymq.runtime.announcement import announced
from gymq.store.connection import Connection
from gymq.store.sharded import Shards
from gymq.store.worker_registry import WorkerEntry, registrations
from gymq.wire.activity import Activity, CallTimes, InWork
from tests.support.shard import keys
from tests.support.waiting import until

ENTRY = WorkerEntry("model", "h", 7, [], starting=["model:m"])


@pytest.fixture
async def own(settings):
    connection = Connection(settings, "own")
    await connection.connect()
    yield connection
    await connection.close()


async def test_a_worker_that_loads_stands_in_the_registry_and_reads_no_mailbox(settings, own, monkeypatch):
    monkeypatch.setattr(announcement, "PATIENCE", 0.0)
    async with Shards(settings, "test") as shards:
        async with announced(settings, own, ENTRY):
            await until(lambda: registrations(shards.first))
            workforce = await read_workforce(shards)
            # It is known by what it will read, and counts as no worker yet; it outlives its lease.
            assert workforce.starting.keys() == {"model:m"}
            assert (workforce.roles, workforce.readers) == ({}, {})
        assert await registrations(shards.first) == []
        assert await shards.first.send("KEYS", keys.alive("*")) == []


async def test_a_worker_that_is_ready_at_once_costs_no_command(settings, own, connection):
    async with announced(settings, own, ENTRY):
        assert await registrations(connection) == []
    assert await registrations(connection) == []


async def test_a_process_with_several_entries_counts_once(settings, connection):
    one = WorkerEntry(
        "model", "h", 7, ["model:m"], activity=Activity({"generate": CallTimes(3)}, {"generate": InWork(1, 1, 1)})
    )
    other = msgspec.structs.replace(one, activity=Activity({"generate": CallTimes(3)}, {"generate": InWork(2, 2, 2)}))
    for name, entry in (("first", one), ("second", other)):
        await connection.send("HSET", keys.workers, name, msgspec.json.encode(entry))
        await connection.send("SET", keys.alive(name), 1)
    async with Shards(settings, "test") as shards:
        workforce = await read_workforce(shards)
    assert (workforce.roles, workforce.readers) == ({"model": 1}, {"model:m": 1})
    assert workforce.activity == Activity({"generate": CallTimes(3)}, {"generate": InWork(3, 3, 2)})
