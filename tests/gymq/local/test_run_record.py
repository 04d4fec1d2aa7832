"""The record of a `gymq run` that is started again: what a shared server holds for others is not lost by it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gymq.client.consumer import Results
from gymq.client.place import Place
from gymq.client.rollout_set import RolloutSet
from gymq.errors import UsageError
from gymq.local.run_record import RunRecord
from gymq.settings import Settings
from gymq.store import runs, scripts
from gymq.store.runs import RunConfig, load_config
from gymq.store.sharded import Shards
from gymq.store.task_ledger import TaskLedger
from gymq.wire.rollout import Rollout
from gymq.wire.task import Task
from tests.support.rollouts import BORN, Pretender

CONFIG = RunConfig("r", "weather", "tool", "scripted", created=BORN)


@pytest.fixture(params=[1, 2], ids=["one shard", "two shards"])
def where(request, redis_url: str) -> Settings:
    """One shard, or two: two databases of one server."""
    return Settings(redis_url=redis_url if request.param == 1 else f"{redis_url},{redis_url[:-1]}1", liveness=1.0)


def record(shards: Shards, out: Path, *kept: int) -> RunRecord:
    file = RolloutSet("r")
    for row in kept:
        file.add(f"r.{row}.0")
    return RunRecord(shards, CONFIG, "jsonl", out, file)


async def end(shards: Shards, *rows: int) -> None:
    """End rollouts, each on its shard."""
    for connection in shards.connections:
        agent = Pretender(connection, await load_config(connection, "r"))
        await connection.run(scripts.admit(100, 4096, 100, 1 << 40, 60_000))
        agent.live = [f"r.{row}.0" for row in rows if row % len(shards.connections) == connection.shard]
        await agent.end(*agent.live)


async def read(where: Settings, consumer: str, count: int) -> list[str]:
    """Read and acknowledge so many rollouts."""
    results = Results("r", consumer, settings=where)
    await results.start()
    found = await take(results, count)
    await results.acknowledge(found)
    await results.close()
    return sorted(rollout.id for rollout in found)


async def take(results: Results, count: int) -> list[Rollout]:
    """Read so many rollouts."""
    found = await results.unacknowledged()
    while len(found) < count:
        batch = await results.read(50)
        assert batch is not None, f"only {found} came"
        found += batch
    return found


async def begin(shards: Shards, out: Path, rows: int = 4) -> None:
    """A `gymq run` with its rows, and a second sink."""
    await record(shards, out).enter(shared=True, again=False)
    for consumer in ("jsonl", "backup"):
        await shards.declare("r", consumer)
    await TaskLedger(shards.connections, "r").write("rows:0", [Task(f"t{n}", "weather", []) for n in range(rows)], 0)
    await shards.close_run("r")


async def test_a_cancelled_run_begins_again_only_when_every_consumer_has_read_it(where, tmp_path):
    async with Shards(where, "test") as shards:
        # Given a run with a second sink that has read nothing yet, and that is cancelled
        await begin(shards, tmp_path)
        await end(shards, 0, 1)
        assert await read(where, "jsonl", 2) == ["r.0.0", "r.1.0"]
        await shards.cancel("r")
        # When the same command is started again
        with pytest.raises(UsageError, match=r"consumer 'backup' has not acknowledged 2 .* `gymq consumer drop r backup`"):
            await record(shards, tmp_path, 0, 1).enter(shared=True, again=False)
        # Then what the other needs is there
        assert await read(where, "backup", 2) == ["r.0.0", "r.1.0"]
        # And once it has that, the run begins again, without what the file has, and nothing is kept from the other
        await record(shards, tmp_path, 0, 1).enter(shared=True, again=False)
        assert (await shards.status("r")).state == "open"
        assert (await shards.status("r")).unread == {"backup": 0}


async def test_a_run_that_is_done_on_one_of_its_shards_goes_on(redis_url, tmp_path):
    where = Settings(redis_url=f"{redis_url},{redis_url[:-1]}1", liveness=1.0)
    async with Shards(where, "test") as shards:
        # Given a run that is done on one of two shards
        await begin(shards, tmp_path)
        await end(shards, 0, 2, 1)
        for consumer in ("jsonl", "backup"):
            part = Results("r", consumer, settings=where)
            await part.start()
            first = [rollout for rollout in await take(part, 3) if rollout.row != 1]
            await part.acknowledge(first)
            await part.close()
        states = await shards.each(lambda connection: connection.send("HGET", connection.keys.run("r"), "state"))
        assert states == [b"done", b"closed"]
        # When the same command is started again
        await record(shards, tmp_path, 0, 2).enter(shared=True, again=False)
        # Then nothing of it is lost, and it takes the rows of a larger limit on both shards
        assert await shards.connections[0].send("TTL", shards.first.keys.run("r")) == -1
        await TaskLedger(shards.connections, "r").write("rows:4", [Task(f"u{n}", "weather", []) for n in range(2)], 4)
        await shards.close_run("r")
        await end(shards, 3, 4, 5)
        assert await read(where, "backup", 4) == ["r.1.0", "r.3.0", "r.4.0", "r.5.0"]
        assert await read(where, "jsonl", 4) == ["r.1.0", "r.3.0", "r.4.0", "r.5.0"]
        assert (await shards.status("r")).state == "done"


async def test_a_run_that_goes_to_another_file_is_refused_on_a_shared_server_only(where, tmp_path):
    async with Shards(where, "test") as shards:
        await begin(shards, tmp_path / "a")
        sink = Results("r", "jsonl", settings=where)
        await sink.connect()
        await sink.join(Place.here(tmp_path / "a"))
        await sink.close()
        with pytest.raises(UsageError, match=r"on this server writes to .*a; use that --out"):
            await record(shards, tmp_path / "b").enter(shared=True, again=False)
        await record(shards, tmp_path / "b").enter(shared=False, again=False)


async def test_a_run_whose_file_is_on_another_host_goes_on_only_with_a_copy_of_it(where, tmp_path, monkeypatch):
    async with Shards(where, "test") as shards:
        # Given a run of host a, whose sink has stored a rollout
        monkeypatch.setattr(socket, "gethostname", lambda: "a")
        await begin(shards, tmp_path)
        await end(shards, 0)
        sink = Results("r", "jsonl", settings=where)
        await sink.connect()
        await sink.join(Place.here(tmp_path))
        await sink.acknowledge(await take(sink, 1))
        await sink.close()
        # When the same command is given on host b, then its file counts
        monkeypatch.setattr(socket, "gethostname", lambda: "b")
        with pytest.raises(UsageError, match="on this server writes to a:"):
            await record(shards, tmp_path).enter(shared=True, again=False)
        await record(shards, tmp_path, 0).enter(shared=True, again=False)
        assert (await shards.status("r")).ended == 1


async def test_a_run_that_is_done_begins_again_without_what_the_file_has(where, tmp_path):
    async with Shards(where, "test") as shards:
        await begin(shards, tmp_path)
        await end(shards, 0, 1, 2, 3)
        for consumer in ("jsonl", "backup"):
            await read(where, consumer, 4)
        assert (await shards.status("r")).state == "done"
        await record(shards, tmp_path, 0, 1, 2, 3).enter(shared=True, again=False)
        assert (await shards.status("r")).state == "open"
        await runs.remove(shards.first, "r")
