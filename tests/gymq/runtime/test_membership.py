"""Life and death on real time: a silent worker's mail comes back, and nobody dies of an outage."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager

import pytest

from gymq.aio import cancel_and_wait
from gymq.loop_clock import LoopClock
from gymq.runtime.mailbox import Mailboxes
from gymq.runtime.membership import HANDBACK_BATCH, Membership
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.worker_registry import WorkerEntry
from tests.support.rollouts import linked
from tests.support.shard import keys
from tests.support.waiting import until

LIMIT = 0.3
BOX = "resource:e"


@pytest.fixture
def settings(redis_url) -> Settings:
    return Settings(redis_url=redis_url, liveness=LIMIT)


@pytest.fixture
async def connection(settings):
    async with linked(settings) as connection:
        await Mailboxes([BOX], keys).create(connection)
        yield connection


@pytest.fixture
async def join(settings, connection):
    """Makes members: `await join("a")`; each has its own connection and stands in the registry."""
    members = []
    # This process may stand still for longer than the short limit; as with the real one, a step is short beside a look's time.
    clock = LoopClock(LIMIT / 30)

    async def make(name: str) -> Membership:
        own = Connection(settings, name)
        await own.connect()
        life = Membership(settings, own, WorkerEntry("resource", name, 1, [BOX]), clock=clock)
        await life.begin()
        members.append(life)
        return life

    yield make
    for life in members:
        await life.connection.close()


@asynccontextmanager
async def beating(*lives: Membership):
    """Renew and sweep in the background, as actors do."""

    async def beat(life: Membership) -> None:
        while True:
            await asyncio.sleep(LIMIT / 3)
            if not await life.renew():
                await life.begin()

    async def look(life: Membership) -> None:
        while True:
            await asyncio.sleep(LIMIT / 4)
            await life.sweep()

    tasks = [asyncio.create_task(job(life)) for life in lives for job in (beat, look)]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        await cancel_and_wait(tasks)


async def hold(connection, life: Membership, count: int = 1) -> None:
    """Let a worker take that much mail."""
    for n in range(count):
        await connection.send("XADD", keys.mailbox(BOX), "*", "c", b"%d" % n)
    await connection.send(
        "XREADGROUP", "GROUP", keys.GROUP, life.worker, "COUNT", count, "STREAMS", keys.mailbox(BOX), ">"
    )  # fmt: skip


async def held(connection, life: Membership) -> int:
    return len(await connection.send("XPENDING", keys.mailbox(BOX), keys.GROUP, "-", "+", 1000, life.worker))


async def handed_back(connection) -> int:
    return await connection.send("XLEN", keys.retry(BOX))


async def registry(connection) -> dict[str, bytes]:
    flat = await connection.send("HGETALL", keys.workers)
    return {name.decode(): info for name, info in zip(flat[::2], flat[1::2], strict=True)}


async def connected(*lives: Membership) -> None:
    """Wait until somebody who joined now may judge; those given stay alive."""
    for _ in range(5):
        await asyncio.sleep(LIMIT / 4)
        for life in lives:
            assert await life.renew()


async def test_the_mail_of_a_worker_that_falls_silent_comes_back(connection, join):
    # Given two workers, one of which holds more mail than one script hands back
    silent, judge = await join("silent"), await join("judge")
    await hold(connection, silent, HANDBACK_BATCH + 7)
    # When that one falls silent
    async with beating(judge):
        await until(lambda: _counted(judge, HANDBACK_BATCH + 7))
    # Then all that it held waits for others, and the worker is gone
    assert await handed_back(connection) == HANDBACK_BATCH + 7
    assert await _gone(connection, silent)
    assert await held(connection, silent) == 0


async def _counted(judge: Membership, count: int) -> bool:
    return judge.handed_back == count


async def _gone(connection, life: Membership) -> bool:
    return life.worker not in await registry(connection)


async def test_workers_that_renew_keep_their_mail_under_each_others_eyes(connection, join):
    first, second = await join("first"), await join("second")
    await hold(connection, first)
    names = {first.worker, second.worker}
    async with beating(first, second):
        await asyncio.sleep(5 * LIMIT)
    assert set(await registry(connection)) == names
    assert await held(connection, first) == 1


async def test_a_judge_that_stood_still_between_two_looks_declares_nobody_dead(connection, join):
    # Given a worker and a judge that may judge
    worker, judge = await join("w"), await join("judge")
    await hold(connection, worker)
    await connected(worker, judge)
    # When their machine stands still, so that the lease lapses, and again between two looks of the judge
    time.sleep(1.5 * LIMIT)
    await judge.sweep()
    time.sleep(LIMIT)
    await judge.sweep()
    # Then the worker, whose turn comes only now, is alive and has its mail
    assert await worker.renew()
    assert await held(connection, worker) == 1


async def test_a_worker_that_lapsed_rejoins_when_nobody_declared_it_dead(connection, join):
    life = await join("w")
    await hold(connection, life)
    name = life.worker
    await asyncio.sleep(LIMIT * 1.5)
    assert await connection.send("EXISTS", keys.alive(name)) == 0
    assert await life.renew()
    assert life.worker == name
    assert 0 < await connection.send("PTTL", keys.alive(name)) <= LIMIT * 1000
    assert await held(connection, life) == 1


async def test_a_worker_is_sure_of_its_name_until_its_key_may_have_lapsed(connection, join):
    life = await join("w")
    assert life.sure
    await asyncio.sleep(LIMIT * 1.2)
    assert not life.sure
    assert await life.renew()
    assert life.sure


@pytest.mark.parametrize("finished", [True, False], ids=["handed back", "being handed back"])
async def test_a_worker_that_was_declared_dead_comes_back_under_a_new_name(connection, join, finished):
    # Given a worker whose hand-back has begun, or has finished
    life = await join("w")
    await hold(connection, life, 3)
    old = life.worker
    await connection.send("DEL", keys.alive(old))
    await connection.run(scripts.hand_back(old, 100 if finished else 2, scripts.HandBackReason.DEAD, [BOX]))
    # When it renews, then it is told; nothing makes the old name live again
    assert not await life.renew()
    assert await connection.send("EXISTS", keys.alive(old)) == 0
    # and it begins anew
    await life.begin()
    assert life.worker != old
    assert await life.renew()
    assert life.worker in await registry(connection)


async def test_a_judge_that_has_just_connected_judges_nobody(connection, join):
    # Given a worker that lapsed long ago
    silent = await join("silent")
    await hold(connection, silent)
    await asyncio.sleep(2 * LIMIT)
    # When a judge that has just come looks, again and again
    judge = await join("judge")
    began = time.monotonic()
    while time.monotonic() - began < LIMIT * 0.8:
        await judge.sweep()
        assert await handed_back(connection) == 0
        await asyncio.sleep(0.01)
    # Then it does so only when it has been there for longer than the limit
    async with beating(judge):
        await until(lambda: _gone(connection, silent))
    assert time.monotonic() - began > LIMIT


async def test_one_look_at_a_missing_key_is_no_judgement(connection, join):
    # Given a judge that may judge, and a worker whose key is missing
    worker, judge = await join("w"), await join("judge")
    await connected(worker, judge)
    await connection.send("DEL", keys.alive(worker.worker))
    # When it is back before the second look
    await judge.sweep()
    assert await worker.renew()
    await asyncio.sleep(LIMIT / 2)
    assert await worker.renew()
    await judge.sweep()
    # and missing again at the third
    await connection.send("DEL", keys.alive(worker.worker))
    await judge.sweep()
    # Then it is not dead
    assert await worker.renew()


async def test_a_hand_back_that_somebody_began_is_finished_at_the_first_look(connection, join):
    dead, judge = await join("dead"), await join("judge")
    await hold(connection, dead, 5)
    await connected(judge, dead)
    await connection.send("DEL", keys.alive(dead.worker))
    await connection.run(scripts.hand_back(dead.worker, 2, scripts.HandBackReason.DEAD, [BOX]))
    await judge.sweep()
    assert await handed_back(connection) == 5
    assert await _gone(connection, dead)


@pytest.mark.parametrize("command", ["HGETALL", "MGET"])
async def test_a_slow_answer_makes_the_judge_begin_anew(connection, join, monkeypatch, command):
    # Given a judge that has seen a key missing once
    silent, judge = await join("silent"), await join("judge")
    await hold(connection, silent)
    await connected(judge, silent)
    await connection.send("DEL", keys.alive(silent.worker))
    await judge.sweep()
    await asyncio.sleep(LIMIT / 2)
    # When an answer of its second look takes longer than a renewal
    send = judge.connection.send

    async def slow(*args):
        if args[0] == command:
            await asyncio.sleep(LIMIT / 2)
        return await send(*args)

    monkeypatch.setattr(judge.connection, "send", slow)
    await judge.sweep()
    monkeypatch.undo()
    # Then it judges nobody, now and at the next look
    assert await handed_back(connection) == 0
    await judge.sweep()
    assert await handed_back(connection) == 0


async def test_a_judge_whose_connection_broke_begins_anew(connection, join):
    # Given a judge that has seen a key missing once
    silent, judge = await join("silent"), await join("judge")
    await hold(connection, silent)
    await connected(judge, silent)
    await connection.send("DEL", keys.alive(silent.worker))
    await judge.sweep()
    await asyncio.sleep(LIMIT / 2)
    # When its connection breaks, then it judges nobody at the next looks
    await connection.send("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await judge.sweep()
    await asyncio.sleep(LIMIT / 2)
    await judge.sweep()
    await judge.sweep()
    assert await handed_back(connection) == 0


async def test_nobody_dies_when_the_server_hangs_for_longer_than_the_limit(connection, join, redis_server):
    # Given two workers that hold mail and look after each other
    first, second = await join("first"), await join("second")
    await hold(connection, first)
    await hold(connection, second)
    names = {first.worker, second.worker}
    async with beating(first, second):
        await asyncio.sleep(2 * LIMIT)
        # When the server hangs for five times the limit
        os.kill(redis_server.pid, signal.SIGSTOP)
        await asyncio.sleep(5 * LIMIT)
        os.kill(redis_server.pid, signal.SIGCONT)
        await asyncio.sleep(5 * LIMIT)
        # Then both are what they were, and hold what they held
        assert {first.worker, second.worker} == set(await registry(connection)) == names
    assert (await held(connection, first), await held(connection, second)) == (1, 1)
    assert await handed_back(connection) == 0


async def test_nobody_dies_when_the_server_is_away_for_longer_than_the_limit(connection, join, redis_server):
    # Given the same two
    first, second = await join("first"), await join("second")
    await hold(connection, first)
    names = {first.worker, second.worker}
    async with beating(first, second):
        await asyncio.sleep(2 * LIMIT)
        # When the server ends, and is there again after five times the limit
        await asyncio.to_thread(redis_server.stop)
        await asyncio.sleep(5 * LIMIT)
        await asyncio.to_thread(redis_server.start)
        await asyncio.sleep(6 * LIMIT)
        assert {first.worker, second.worker} == names
    await connection.reconnect()
    # Then both are what they were
    assert set(await registry(connection)) == names
    assert await held(connection, first) == 1
    assert await handed_back(connection) == 0


async def test_a_death_right_after_an_outage_is_noticed_all_the_same(connection, join, redis_server):
    first, second = await join("first"), await join("second")
    await hold(connection, first)
    async with beating(second):
        os.kill(redis_server.pid, signal.SIGSTOP)
        await asyncio.sleep(2 * LIMIT)
        os.kill(redis_server.pid, signal.SIGCONT)
        await until(lambda: _gone(connection, first))
    assert await handed_back(connection) == 1


@pytest.mark.parametrize("when", ["in an outage", "before", "after"])
async def test_only_a_worker_that_was_not_seen_since_an_outage_dies_without_a_death_of_its_mail(connection, join, when):
    # Given two workers, one of which ends: over an outage of Redis that both see, or without one
    ends, judge = await join("w"), await join("judge")
    await hold(connection, ends)
    await connected(ends, judge)
    await judge.sweep()
    if when == "before":
        await connection.send("DEL", keys.alive(ends.worker))
        await judge.sweep()
    await judge.recover()
    if when == "after":
        await connection.send("SET", keys.alive(ends.worker), "1")
        await judge.sweep()
    await connection.send("DEL", keys.alive(ends.worker))
    # When its mail is handed back
    async with beating(judge):
        await until(lambda: _gone(connection, ends))
    # Then that is a death unless it was over the outage
    ((_, fields),) = await connection.send("XRANGE", keys.retry(BOX), "-", "+")
    assert fields[-2:] == [b"a", b"0" if when == "in an outage" else b"1"]


async def test_what_a_zombie_takes_under_its_old_name_comes_back(connection, join):
    # Given a worker that was declared dead and handed back
    zombie, judge = await join("zombie"), await join("judge")
    await connected(judge, zombie)
    await connection.send("DEL", keys.alive(zombie.worker))
    await connection.run(scripts.hand_back(zombie.worker, 100, scripts.HandBackReason.DEAD, [BOX]))
    # When it takes mail before it knows
    await hold(connection, zombie)
    await judge.sweep()
    # Then that comes back too
    assert await handed_back(connection) == 1


async def test_who_leaves_hands_back_what_it_holds_and_is_gone_from_the_registry(connection, join):
    life, other = await join("w"), await join("other")
    await hold(connection, life, 2 * HANDBACK_BATCH + 1)
    await life.leave()
    assert await handed_back(connection) == 2 * HANDBACK_BATCH + 1
    assert set(await registry(connection)) == {other.worker}
    assert await connection.send("EXISTS", keys.alive(life.worker)) == 0


class Hand:
    """A clock that is set by hand."""

    at = 1000.0

    def now(self) -> float:
        return self.at


@pytest.mark.parametrize(("workers", "looks"), [(5, 100), (200, 7)])
async def test_the_more_workers_there_are_the_more_seldom_each_reads_the_registry(settings, connection, workers, looks):
    # Given so many workers that are alive, and a judge
    for n in range(workers):
        await connection.run(scripts.register_worker(f"w{n}", b"{}", 60_000, b""))
    clock, asked = Hand(), 0
    judge = Membership(settings, connection, WorkerEntry("resource", "h", 1, [BOX]), clock=clock)
    await judge.begin()
    send = connection.send

    async def count(*command):
        nonlocal asked
        asked += command[0] == "HGETALL"
        return await send(*command)

    connection.send = count
    # When it sweeps once a second
    for _ in range(100):
        await judge.sweep()
        clock.at += 1
    # Then all of them together read it about ten times a second
    assert asked == 100 if workers == 5 else 3 <= asked <= 2 * looks
    # And while one is missing, it looks each time, so that a death is noticed as soon as among few
    await connection.send("DEL", keys.alive("w1"))
    clock.at += 1000
    for _ in range(2):
        await judge.sweep()
        clock.at += LIMIT / 2
    assert await _gone_name(connection, "w1")


async def _gone_name(connection, name: str) -> bool:
    return name not in await registry(connection)
