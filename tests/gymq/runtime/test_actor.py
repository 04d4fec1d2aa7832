"""What actors do with mail that is no use to them: calls that nobody wants any more, and mail of a newer schema."""

from __future__ import annotations

import asyncio

import pytest

from gymq.runtime import call_worker
from gymq.store import scripts
from gymq.store.scripts.script import pack
from gymq.wire.calls import SCHEMA
from tests.support.call_server import BOX, Server, call, living, replies
from tests.support.shard import keys
from tests.support.waiting import until


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(call_worker, "WANTED_CHECK_AFTER", 0.2)


@pytest.mark.parametrize("how", ["ended", "gone on", "answered"])
async def test_a_call_in_work_that_nobody_wants_any_more_is_cut_off_and_its_place_is_free(settings, connection, impatient, how):
    # Given a worker at two calls
    worker = Server(settings)
    async with living(worker):
        unwanted = await call(connection, 1, "wait")
        await call(connection, 2, "wait")
        await until(lambda: len(worker.started) == 2)
        # When one is not wanted any more
        rollout = keys.rollout("r.1.0")
        if how == "answered":
            assert await connection.run(scripts.reply([scripts.ReplyEntry("r.1.0", 1, 0, b"", "", "")])) == [True]
        else:
            await connection.send(*(("DEL", rollout) if how == "ended" else ("HSET", rollout, "v", 2)))
        # Then it is cut off, its mail is gone, and the other goes on
        await until(lambda: worker.cancelled == [unwanted.id])
        await until(lambda: worker.stats()["held"] == 1)
        assert await connection.send("XLEN", keys.mailbox(BOX)) == 1
        worker.gate.set()
        await until(lambda: worker.stats()["held"] == 0)
    assert worker.counts["unwanted"] == 1


async def test_a_worker_that_stood_still_takes_no_mail_before_it_has_renewed_its_name(settings, connection, monkeypatch):
    # Given a worker that stood still for longer than the limit of liveness
    worker = Server(settings)
    async with living(worker):
        renewed = asyncio.Event()
        renew = worker.life.renew

        async def late() -> bool:
            await renewed.wait()
            return await renew()

        monkeypatch.setattr(worker.life, "renew", late)
        await asyncio.sleep(settings.liveness)  # a renewal that was under way has ended
        monkeypatch.setattr(worker.life, "_until", 0.0)
        # When mail comes, at once or while it reads
        for n in (1, 2):
            await call(connection, n, "wait")
        # Then it begins none of it: others may have taken it for dead
        await asyncio.sleep(0.5)
        assert not worker.started
        # When it has renewed its name, it begins
        renewed.set()
        await until(lambda: len(worker.started) == 2)
        worker.gate.set()
        await until(lambda: worker.stats()["held"] == 0)


async def test_a_close_is_not_cut_off(settings, connection, impatient):
    worker = Server(settings)
    async with living(worker):
        await call(connection, 1, "wait", kind="close")
        await until(lambda: worker.started)
        await connection.send("DEL", keys.rollout("r.1.0"))
        await asyncio.sleep(0.6)
        assert worker.cancelled == []
        worker.gate.set()
        await until(lambda: worker.stats()["held"] == 0)


async def test_calls_that_lay_long_are_asked_about_before_they_are_begun(settings, connection, impatient):
    # Given calls that lay for a while, one of which nobody wants any more
    for n in range(4):
        await call(connection, n)
    await connection.send("DEL", keys.rollout("r.2.0"))
    await asyncio.sleep(0.4)
    # When a worker takes them, then it does not begin that one
    worker = Server(settings)
    async with living(worker):
        await replies(connection, 3)
        await until(lambda: worker.stats()["held"] == 0)
    assert sorted(worker.started) == [f"r.{n}.0:1:0" for n in (0, 1, 3)]
    assert await connection.send("XLEN", keys.mailbox(BOX)) == 0


async def test_calls_that_are_young_or_short_cost_no_look(settings, connection, monkeypatch):
    monkeypatch.setattr(call_worker.CallWorker, "_wanted", None)  # who looks, fails
    worker = Server(settings)
    worker.duties = lambda: asyncio.sleep(0)
    async with living(worker):
        for n in range(50):
            await call(connection, n)
        await replies(connection, 50)
    assert len(worker.started) == 50


async def test_mail_of_a_newer_schema_is_put_aside_until_a_worker_that_reads_it_comes(settings, connection, monkeypatch, heard):
    # Given a call of this schema and several of the next, one of which was handed back twice
    one = await call(connection, 1)
    for n in range(2, 6):
        later = await call(connection, n)
        await connection.send("XTRIM", keys.mailbox(BOX), "MAXLEN", 1)
        fields = (f"c{SCHEMA + 1}", pack([n]), *(("a", 2) if n == 2 else ()))
        await connection.send("XADD", keys.retry(BOX), "*", *fields)
        await connection.send("DEL", keys.mailbox(BOX), keys.rollout(later.rollout))
    await call(connection, 1)
    worker = Server(settings)
    async with living(worker):
        # When a worker takes them
        await replies(connection, 1)
        await until(lambda: worker.stats()["held"] == 0)
        await asyncio.sleep(0.3)
        # Then it serves what it can read, and puts the others aside as they are, once
        assert worker.started == [one.id]
        assert worker.counts["parked"] == 4
        aside = [fields for _, fields in await connection.send("XRANGE", keys.newer(BOX), "-", "+")]
        assert aside[0] == [b"s", b"2", b"c2", pack([2]), b"a", b"2"]
        assert len(aside) == 4
        assert await connection.send("XLEN", keys.retry(BOX)) == 0
    assert sum("mail of a newer schema (2; this worker reads up to 1) waits" in line for line in heard()) == 1
    # When one that reads them looks, then they are read before all others, with their count of attempts
    assert await connection.run(scripts.unpark(SCHEMA, 100, [BOX])) == scripts.Unparked(0, 0)
    assert await connection.run(scripts.unpark(SCHEMA + 1, 100, [BOX])) == scripts.Unparked(4, 0)
    back = [fields for _, fields in await connection.send("XRANGE", keys.retry(BOX), "-", "+")]
    assert back[0] == [b"c2", pack([2]), b"a", b"2"] and len(back) == 4
    assert await connection.send("EXISTS", keys.newer(BOX)) == 0


async def test_a_suspect_of_a_newer_schema_is_a_suspect_again_when_it_is_taken_up(settings, connection):
    # Given a suspect that this version cannot read, and a quarantine of this version
    quarantine = Server(settings, suspects_only=True)
    fields = (f"c{SCHEMA + 1}", "body", "k", 1, "w", "victim", "a", 3)
    await connection.send("XADD", keys.suspects(BOX), "*", *fields)
    # When the quarantine takes it
    async with living(quarantine):
        await until(lambda: quarantine.counts["parked"] == 1)
        await until(lambda: quarantine.stats()["held"] == 0)
    # Then newer workers find it, and no ordinary one reads it
    assert await connection.run(scripts.unpark(SCHEMA + 1, 100, [BOX])) == scripts.Unparked(1, 0)
    ((_, back),) = await connection.send("XRANGE", keys.suspects(BOX), "-", "+")
    assert back == [str(field).encode() for field in fields]
    assert await connection.send("EXISTS", keys.retry(BOX)) == 0 or await connection.send("XLEN", keys.retry(BOX)) == 0


async def test_mail_is_put_aside_once_by_whoever_holds_it(connection):
    # Given newer mail that a worker holds
    stream = keys.mailbox(BOX)
    await connection.send("XGROUP CREATE", stream, keys.GROUP, 0, "MKSTREAM")
    entry = await connection.send("XADD", stream, "*", "c9", "body")
    await connection.send("XREADGROUP", "GROUP", keys.GROUP, "w", "STREAMS", stream, ">")
    # When it says twice that it cannot read it, then it is there once
    assert await connection.run(scripts.park([scripts.ParkEntry(BOX, stream, entry, 9)])) == 1
    assert await connection.run(scripts.park([scripts.ParkEntry(BOX, stream, entry, 9)])) == 0
    assert await connection.send("XLEN", keys.newer(BOX)) == 1
    assert await connection.send("XLEN", stream) == 0


async def test_a_call_whose_answer_redis_has_lost_is_served_again(settings, connection):
    # Given a call that another process has answered, and Redis has lost that answer
    class Submitter(Server):
        async def serve(self, call):
            value = await super().serve(call)
            return None if len(self.started) == 1 else value

    worker = Submitter(settings)
    async with living(worker):
        one = await call(connection, 1)
        # Then its mail is not acknowledged before it has an answer
        assert (await replies(connection, 1))["r.1.0"].value == b"value"
        await until(lambda: worker.stats()["held"] == 0)
    assert worker.started == [one.id] * 2
    assert await connection.send("XLEN", keys.mailbox(BOX)) == 0
