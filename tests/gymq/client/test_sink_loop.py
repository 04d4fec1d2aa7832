"""Feeding a sink: whatever dies and whenever, each rollout stands in its files once, and nothing holds up the run."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from gymq_sinks.jsonl import JsonlSink
from gymq_sinks.parquet import ParquetSink

from gymq.client.consumer import Results
from gymq.client.sink_loop import COMMIT_EVERY, Sink, feed
from gymq.errors import GymqError, MemberReplaced, SinkBusy, UnknownName, UsageError
from gymq.observe.events import RolloutsStored, subscribe, unsubscribe
from gymq.store import scripts
from gymq.store.runs import RunConfig, close
from tests.support.rollouts import Pretender, Workers, ask, linked, produce, wait_for_state, weather, with_link
from tests.support.shard import keys
from tests.support.tiers import slow
from tests.support.waiting import wait_until

#: A sink in a process of its own that kills itself, hard, before or after its first commit, or never.
DOOMED = """
import asyncio, os, signal, sys
from pathlib import Path
from gymq import plugins
from gymq.settings import Settings
from gymq.client.sink_loop import feed

kind, path, moment = sys.argv[1:]
base = plugins.load("gymq.sinks", kind)

class Doomed(base):
    def commit(self):
        if moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit()
        if moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    def due(self, age, idle):
        return self.written + len(getattr(self, "_fresh", ())) >= 3 or super().due(age, idle)

asyncio.run(feed(Doomed(Path(path), "r"), "sink", Settings.from_environment(), asyncio.Event()))
"""

#: `gymq sink` as it runs on another host, where the locks of this one do not reach.
ELSEWHERE = """
import fcntl, socket, sys
host = sys.argv.pop(1)
socket.gethostname = lambda: host
fcntl.flock = lambda file, how: None
from gymq.cli import main
main()
"""

KINDS = {"jsonl": JsonlSink, "parquet": ParquetSink}


@pytest.fixture
async def run(settings):
    """A run with the consumer `sink`, and an agent that does what the test says."""
    async with linked(settings) as connection:
        pretender = Pretender(connection, RunConfig("r", "weather", "tool", "scripted"))
        await pretender.create("sink")
        yield pretender


def ids(kind: str, path: Path) -> list[str]:
    """The ids of the rollouts that stand in a sink's files, sorted."""
    if kind == "jsonl":
        return sorted(msgspec.json.decode(line)["rollout_id"] for line in path.read_bytes().splitlines())
    import pyarrow.parquet as pq

    return sorted(pq.read_table(path, columns=["rollout_id"]).column(0).to_pylist())


def names(count: int) -> list[str]:
    return sorted(f"r.{i}.0" for i in range(count))


@pytest.mark.chaos
@pytest.mark.parametrize("moment", ["before", *slow("after")])
@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_lost_or_there_twice_after_kill_9_around_a_commit(
    spawn, settings, run, tmp_path, kind, moment, no_leaks
):
    # Given a sink that is killed before or after its commit, but before it acknowledges
    path = tmp_path / "out"
    await run.enqueue(8)
    await run.admit()
    await run.end(*run.live[:5])
    doomed = [sys.executable, "-c", DOOMED, kind, str(path)]
    env = {"GYMQ_REDIS_URL": settings.redis_url}
    victim = spawn([*doomed, moment], env)
    assert await asyncio.to_thread(victim.wait, 30) == -9
    # When it is started again, and the rest ends
    assert (await run.connection.send("XPENDING", keys.results("r"), "sink"))[0] == 5
    await run.end(*run.live)
    await run.finish(2)
    again = spawn([*doomed, "never"], env, stderr=subprocess.PIPE)
    assert await asyncio.to_thread(again.wait, 30) == 0, again.stderr.read().decode()
    # Then every rollout stands there once, and the run is done
    assert ids(kind, path) == names(10)
    assert await run.connection.send("HGET", keys.run("r"), "state") == b"done"


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_or_there_twice_after_kill_9_at_any_moment(spawn, settings, tmp_path, kind, no_leaks):
    # Given workers and a run that takes a while
    workers = Workers(spawn, settings, tmp_path).start_all(latency=0.1)
    config = RunConfig("r", "weather", "tool", "scripted", concurrency=8)
    produce(settings, config, weather(300), consumers=["sink"], last=False)
    path = tmp_path / "out"
    doomed = [sys.executable, "-c", DOOMED, kind, str(path), "never"]
    env = {"GYMQ_REDIS_URL": settings.redis_url}
    # When its sink is killed again and again
    for delay in (0.1, 0.25, 0.4, 0.6):
        sink = spawn(doomed, env)
        wait_until(lambda: _reads(settings))
        time.sleep(delay)
        sink.kill()
        sink.wait()
    with_link(settings, lambda connection: close(connection, "r"))
    spawn(doomed, env)
    # Then every rollout stands there once, and Redis keeps nothing
    wait_for_state(settings, "r", "done", 60)
    wait_until(lambda: len(ids(kind, path)) == 300)
    assert ids(kind, path) == names(300)
    workers.stop()


def _reads(settings) -> bool:
    return any(b"name=gymq-consumer-sink" in line for line in ask(settings, "CLIENT", "LIST").splitlines())


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sink_that_is_told_to_stop_keeps_what_it_has_and_goes_on_later(settings, run, tmp_path, kind):
    path = tmp_path / "out"
    await run.finish(4, close=False)
    stop = asyncio.Event()
    feeding = asyncio.create_task(feed(KINDS[kind](path, "r"), "sink", settings, stop))
    await until(lambda: _delivered(run))
    stop.set()
    assert await asyncio.wait_for(feeding, 5) is False
    assert ids(kind, path) == names(4)
    assert await run.connection.run(scripts.consumer_lag("r")) == {"sink": 0}
    await run.finish(3)
    assert await feed(KINDS[kind](path, "r"), "sink", settings, asyncio.Event()) is True
    assert ids(kind, path) == names(7)


async def test_a_sink_tells_how_many_rollouts_it_has_made_durable(settings, run, tmp_path):
    stored: list[RolloutsStored] = []
    subscribe(RolloutsStored, stored.append)
    try:
        await run.finish(5)
        await feed(JsonlSink(tmp_path / "out", "r"), "sink", settings, asyncio.Event())
    finally:
        unsubscribe(stored.append)
    assert {event.run for event in stored} == {"r"}
    assert sum(event.rollouts for event in stored) == 5


async def test_a_slow_trickle_is_on_the_disk_at_once(settings, run, tmp_path):
    path = tmp_path / "out.jsonl"
    await run.enqueue(2)
    await run.admit()
    feeding = asyncio.create_task(feed(JsonlSink(path, "r"), "sink", settings, asyncio.Event()))
    await run.end("r.0.0")
    await asyncio.sleep(4 * COMMIT_EVERY)
    assert ids("jsonl", path) == ["r.0.0"]
    assert await run.connection.run(scripts.consumer_lag("r")) == {"sink": 0}
    feeding.cancel()


async def test_a_parquet_part_never_stops_a_run_with_a_small_backlog(settings, tmp_path):
    # Given a run whose consumers may be four rollouts behind, and a sink that would rather wait for thousands
    async with linked(settings) as connection:
        run = Pretender(connection, RunConfig("r", "weather", "tool", "scripted", backlog=4))
        await run.create("sink")
        await run.enqueue(12)
        feeding = asyncio.create_task(feed(ParquetSink(tmp_path, "r"), "sink", settings, asyncio.Event()))
        # Then the run goes on all the same
        async with asyncio.timeout(10):
            ended = 0
            while ended < 12:
                await run.admit(2)
                ended += len(run.live)
                await run.end(*run.live)
                await asyncio.sleep(0.02)
        feeding.cancel()


async def test_a_sink_that_cannot_write_is_no_consumer(settings, run, tmp_path):
    # Given a file that somebody else writes
    first = JsonlSink(tmp_path / "out.jsonl", "r")
    first.open()
    # When another sink wants it, under another name
    with pytest.raises(SinkBusy):
        await feed(JsonlSink(tmp_path / "out.jsonl", "r"), "other", settings, asyncio.Event())
    # Then the run waits for nobody of that name
    assert [group[1] for group in await run.connection.send("XINFO", "GROUPS", keys.results("r"))] == [b"sink"]
    first.close()


async def test_a_sink_of_no_run_leaves_no_file(settings, tmp_path):
    with pytest.raises(UnknownName, match="no run 'nowhere'"):
        await feed(JsonlSink(tmp_path / "out.jsonl", "nowhere"), "sink", settings, asyncio.Event())
    assert not (tmp_path / "out.jsonl").exists()


async def test_a_late_sink_is_told_what_it_missed(settings, run, tmp_path):
    await run.finish(3, close=False)
    stop = asyncio.Event()
    feeding = asyncio.create_task(feed(JsonlSink(tmp_path / "a", "r"), "sink", settings, stop))
    await asyncio.sleep(3 * COMMIT_EVERY)
    stop.set()
    await feeding
    await run.finish(2)
    late = JsonlSink(tmp_path / "b", "r")
    assert await feed(late, "late", settings, asyncio.Event())
    assert (late.missed, late.written) == (3, 2)


async def test_what_a_sink_could_not_write_is_not_acknowledged(settings, run, tmp_path):
    class Full(Sink):
        def open(self) -> None: ...

        def write(self, rollouts) -> None:
            raise GymqError("no room")

    await run.finish(3)
    with pytest.raises(GymqError, match="no room"):
        await feed(Full(tmp_path / "out", "r"), "sink", settings, asyncio.Event())
    assert await feed(JsonlSink(tmp_path / "out", "r"), "sink", settings, asyncio.Event())
    assert ids("jsonl", tmp_path / "out") == names(3)


async def test_a_group_of_which_a_sink_has_a_member_from_an_earlier_life_is_flagged_and_comes_at_once(settings):
    async with linked(settings) as connection:
        run = Pretender(connection, RunConfig("r", "weather", "tool", "scripted", samples=3))
        await run.create("trainer")
        # Given that the sink has the last member of the first group and all of the second
        await connection.send("SADD", keys.skip("r"), "r.0.2", "r.1.0", "r.1.1", "r.1.2")
        await run.enqueue(3)
        await run.admit()
        assert run.live == ["r.0.0", "r.0.1", "r.2.0", "r.2.1", "r.2.2"]
        # When the others end
        await run.end("r.0.0", "r.0.1", "r.2.0", "r.2.1", "r.2.2")
        groups = aiter(Results("r", "trainer", "group", settings))
        first, third = await anext(groups), await anext(groups)
        # Then the group comes while the run is open, flagged; the whole one is not
        assert (first.id, first.complete, third.id, third.complete) == ("r.0", False, "r.2", True)
        # And what counts the members of partial groups is back at nothing
        assert await connection.send("HGET", keys.run("r"), "partial") == b"0"
        assert await connection.send("HLEN", keys.rows("r")) == 0


async def test_a_sink_and_a_trainer_live_through_a_restart_of_the_server(redis_server, settings, run, tmp_path):
    # Given a sink, and a trainer that has taken two of four rollouts and acknowledged none
    await run.connection.run(scripts.declare_consumer("r", "trainer"))
    await run.finish(4, close=False)
    feeding = asyncio.create_task(feed(JsonlSink(tmp_path / "out", "r"), "sink", settings, asyncio.Event()))
    trainer = aiter(results := Results("r", "trainer", settings=settings))
    taken = [await anext(trainer), await anext(trainer)]
    # When the server is stopped and started again, and more rollouts end
    await asyncio.to_thread(redis_server.stop)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(redis_server.start)
    await run.connection.reconnect()
    await run.finish(3)
    # Then both get everything, once
    assert await asyncio.wait_for(feeding, 20) is True
    taken += [rollout async for rollout in trainer]
    assert [rollout.id for rollout in taken] == [f"r.{i}.0" for i in range(7)]
    assert ids("jsonl", tmp_path / "out") == names(7)
    await results.ack(*taken)
    assert await run.connection.send("HGET", keys.run("r"), "state") == b"done"
    await results.close()


def elsewhere(spawn, settings, host: str, kind: str, path: Path) -> subprocess.Popen[bytes]:
    """`gymq sink` on another host."""
    argv = [sys.executable, "-c", ELSEWHERE, host, "sink", kind, "--run", "r", "--out", str(path), "--consumer", "sink"]
    return spawn(argv, {"GYMQ_REDIS_URL": settings.redis_url}, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


async def until(condition) -> None:
    """Wait until something that is awaited is true."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_of_two_hosts_that_write_one_place_the_newcomer_writes_all_and_the_other_ends(
    spawn, settings, run, tmp_path, kind
):
    path, key = tmp_path / "out", keys.run("r")

    async def claimed_by_b() -> bool:
        return (await run.connection.send("HGET", key, "to:sink") or b"").startswith(b"b:")

    async def acknowledged() -> bool:
        return await run.connection.run(scripts.consumer_lag("r")) == {"sink": 0}

    # Given a sink on host a that has stored some rollouts
    await run.finish(20, close=False)
    first = elsewhere(spawn, settings, "a", kind, path)
    if kind == "jsonl":
        await until(acknowledged)
    else:
        await until(lambda: asyncio.to_thread(lambda: any(path.glob(".writing-*"))))
    # When the same command is started on host b while rollouts end
    second = elsewhere(spawn, settings, "b", kind, path)
    while not await claimed_by_b():
        await run.finish(1, close=False)
        await asyncio.sleep(0.02)
    await run.finish(20)
    # Then the one on a is told, and the one on b has all, once
    assert await asyncio.to_thread(second.wait, 30) == 0, second.stderr.read().decode()
    assert await asyncio.to_thread(first.wait, 30) == 5
    assert b"another process has become its member '0'" in first.stderr.read()
    total = int(await run.connection.send("HGET", key, "ended"))
    assert ids(kind, path) == names(total)
    assert await run.connection.send("HGET", key, "state") == b"done"


async def test_a_file_of_the_same_name_on_another_host_is_refused_unless_it_holds_what_was_acknowledged(
    settings, run, tmp_path, monkeypatch
):
    # Given a sink on host a, which has stored three rollouts
    path = tmp_path / "out"
    monkeypatch.setattr(socket, "gethostname", lambda: "a")
    await run.finish(3, close=False)
    stop = asyncio.Event()
    feeding = asyncio.create_task(feed(JsonlSink(path, "r"), "sink", settings, stop))
    await until(lambda: _read_by(run))
    # When one starts on host b, whose file of that name is another one
    monkeypatch.setattr(socket, "gethostname", lambda: "b")
    path.rename(tmp_path / "a")
    with pytest.raises(UsageError, match=rf"writes to a:{path}, and b:{path} holds 0 of the 3 rollouts"):
        await asyncio.wait_for(feed(JsonlSink(path, "r"), "sink", settings, asyncio.Event()), 5)
    # Then the one on a goes on
    await run.finish(2, close=False)
    await until(lambda: _read_by(run))
    assert ids("jsonl", tmp_path / "a") == names(5)
    # And on b a copy of its file will do
    path.write_bytes((tmp_path / "a").read_bytes())
    await run.finish(1)
    assert await feed(JsonlSink(path, "r"), "sink", settings, asyncio.Event())
    with pytest.raises(MemberReplaced):
        await feeding
    assert ids("jsonl", path) == names(6)


async def _delivered(run: Pretender) -> bool:
    """Whether the sink has been given something."""
    (group,) = await run.connection.send("XINFO", "GROUPS", keys.results("r"))
    return dict(zip(group[::2], group[1::2], strict=True))[b"last-delivered-id"] != b"0-0"


async def _read_by(run: Pretender) -> bool:
    return await run.connection.run(scripts.consumer_lag("r")) == {"sink": 0}


async def test_a_run_whose_record_was_made_anew_has_lost_nothing(settings, run, tmp_path):
    # Given a file of an earlier life of the run, in which more rollouts had ended
    path = tmp_path / "out"
    await run.finish(5, close=False)
    stop = asyncio.Event()
    feeding = asyncio.create_task(feed(JsonlSink(path, "r"), "sink", settings, stop))
    await until(lambda: _read_by(run))
    stop.set()
    await feeding
    await run.connection.run(scripts.remove_run("r"))
    await run.create("sink")
    await run.connection.send("SADD", keys.skip("r"), *names(5)[2:])
    await run.connection.send("HDEL", keys.run("r"), "to:sink")
    # When two rows are rolled out again, whose commit numbers begin anew
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[2:]))
    await run.finish(5)
    again = JsonlSink(path, "r")
    assert await feed(again, "sink", settings, asyncio.Event())
    # Then no loss is told
    assert (again.written, again.rolled_back) == (2, 0)
    assert ids("jsonl", path) == names(5)
