"""The actor's life, and how it serves calls: drains, lapses, defects, outages, and what it keeps of conversations."""

from __future__ import annotations

import asyncio

import pytest
from gymq_workers.agent.record import call_record

from gymq.errors import GymqError
from gymq.runtime import actor, mailbox
from gymq.runtime.actor import Actor
from gymq.runtime.call_worker import STRIKES
from gymq.settings import Settings
from gymq.store import scripts
from gymq.wire.calls import Call, Generated, Reply, Tokens, Usage
from gymq.wire.record import encode_call
from tests.support.call_server import BOX, Server, call, living, replies
from tests.support.rollouts import letters
from tests.support.shard import keys
from tests.support.waiting import until


@pytest.fixture
def settings(redis_url) -> Settings:
    return Settings(redis_url=redis_url, liveness=0.3)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Actors look and wait as often as the short liveness wants it."""
    monkeypatch.setattr(actor, "SWEEP", 0.05)
    monkeypatch.setattr(mailbox, "BLOCK_MS", 50)


async def test_a_reply_says_how_long_its_call_waited_for_limits(settings, connection):
    server = Server(settings)
    async with living(server):
        await call(connection, 1, arguments="waited")
        (reply,) = (await replies(connection, 1)).values()
    assert reply.waited == 1.5
    assert not server.waited


async def test_a_call_is_answered_and_its_mail_is_gone(settings, connection):
    server = Server(settings)
    async with living(server):
        one = await call(connection, 1)
        (reply,) = (await replies(connection, 1)).values()
        await until(lambda: server.stats()["held"] == 0)
    assert (reply.fault, reply.value, reply.attempt, reply.worker) == (None, b"value", 0, server.worker)
    assert server.started == [one.id]
    assert await connection.send("XLEN", keys.mailbox(BOX)) == 0


async def test_faults_and_defects_of_a_call_are_its_reply_and_the_worker_lives_on(settings, connection, caplog):
    async with living(Server(settings)):
        for n, arguments in enumerate(["fault", "defect", ""]):
            await call(connection, n, arguments)
        found = await replies(connection, 3)
    assert found["r.0.0"].fault.kind == "environment"
    assert found["r.1.0"].fault.kind == "internal" and "ZeroDivisionError: a defect" in found["r.1.0"].fault.message
    assert found["r.2.0"].fault is None
    assert "Traceback" in caplog.text


async def test_mail_that_is_no_call_is_put_aside_and_the_next_one_served(settings, connection, heard):
    await connection.send("XADD", keys.mailbox(BOX), "*", "c", b"\xc1 forged")
    server = Server(settings)
    async with living(server):
        one = await call(connection, 1)
        await replies(connection, 1)
        await until(lambda: server.stats()["held"] == 0)
    assert server.started == [one.id]
    assert any("is no call" in line for line in heard())
    assert await connection.send("XLEN", keys.mailbox(BOX)) == 0


async def test_a_call_that_killed_its_process_alone_three_times_is_a_dead_letter_and_not_run(settings, connection):
    server = Server(settings)
    async with living(server):
        await call(connection, 1, "fatal", strikes=STRIKES)
        await call(connection, 2, strikes=STRIKES - 1)
        found = await replies(connection, 2)
    assert (found["r.1.0"].fault.kind, found["r.1.0"].attempt) == ("poison", STRIKES + 2)
    assert (found["r.2.0"].fault, found["r.2.0"].attempt) == (None, STRIKES + 1)
    assert server.started == ["r.2.0:1:0"]
    (letter,) = [one.letter for one in await letters(settings)]
    assert (letter.id, letter.mailbox, letter.kind, letter.worker) == ("r.1.0:1:0", BOX, "tool", "victim")
    assert letter.call is not None and letter.call.arguments == "fatal"
    assert await connection.send("TTL", keys.dead) > 0


async def test_a_call_whose_rollout_has_ended_makes_no_dead_letter(settings, connection):
    server = Server(settings)
    async with living(server):
        await call(connection, 1, strikes=STRIKES)
        await connection.send("DEL", keys.rollout("r.1.0"))
        await until(lambda: server.counts["stale"] == 1)
    assert await letters(settings) == []


async def test_a_worker_holds_no_more_than_it_can_start(settings, connection):
    server = Server(settings)
    async with living(server):
        for n in range(10):
            await call(connection, n, "wait")
        await until(lambda: len(server.started) == server.intake.capacity)
        await asyncio.sleep(0.2)
        assert len(server.started) == server.stats()["held"] == server.intake.capacity
        server.gate.set()
        await replies(connection, 10)
    assert sorted(server.started) == sorted({f"r.{n}.0:1:0" for n in range(10)})


async def test_draining_finishes_what_is_held_and_takes_nothing_more(settings, connection):
    # Given a worker that holds a call
    server = Server(settings)
    async with living(server) as (life,):
        await call(connection, 1, "wait")
        await until(lambda: server.started)
        # When it drains while another call comes
        server.drain()
        await asyncio.sleep(0.2)
        await call(connection, 2)
        assert not life.done()
        server.gate.set()
        await asyncio.wait_for(life, 5)
    # Then the first was answered here, the second waits for others, and the worker is gone
    assert set(await replies(connection, 1)) == {"r.1.0"}
    assert server.started == ["r.1.0:1:0"]
    assert await connection.send("XLEN", keys.mailbox(BOX)) == 1
    assert await connection.send("HLEN", keys.workers) == 0


async def test_stopping_hands_back_what_is_held(settings, connection):
    server = Server(settings)
    async with living(server) as (life,):
        await call(connection, 1, "wait")
        await until(lambda: server.started)
        server.stop()
        await asyncio.wait_for(life, 5)
    assert server.cancelled == ["r.1.0:1:0"]
    ((_, fields),) = await connection.send("XRANGE", keys.retry(BOX), "-", "+")
    assert fields[2:] == [b"a", b"0"]


class Broken(Actor):
    """Has a defect."""

    role = "resource"

    def mailboxes(self):
        return [BOX]


class BrokenHandle(Broken):
    async def handle(self, mail):
        raise ZeroDivisionError("a defect")


class BrokenWork(Broken):
    async def handle(self, mail):
        self.spawn(self.work())

    async def work(self):
        raise ZeroDivisionError("a defect")


class BrokenDuty(Broken):
    async def handle(self, mail):
        """Nothing."""

    async def duties(self):
        raise ZeroDivisionError("a defect")


@pytest.mark.parametrize("kind", [BrokenHandle, BrokenWork, BrokenDuty])
async def test_a_defect_ends_the_actor_with_that_exception_and_its_mail_is_not_lost(settings, connection, kind):
    await call(connection, 1)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        await asyncio.wait_for(kind(settings, {}).main(), 5)
    server = Server(settings)
    async with living(server):
        await replies(connection, 1)


async def test_replies_that_the_server_refuses_end_the_actor(settings, connection):
    # Given a call whose reply cannot be written
    await call(connection, 1)
    await connection.send("SET", keys.rollout("r.1.0"), "not a hash")
    # When somebody answers it, then it ends: it does not sit on what it holds
    with pytest.raises(GymqError, match="WRONGTYPE"):
        await asyncio.wait_for(Server(settings).main(), 5)
    # and the call is answered by another, once that is possible
    await connection.send("DEL", keys.rollout("r.1.0"))
    await connection.send("HSET", keys.rollout("r.1.0"), "v", 1, "c1.0", 1)
    async with living(Server(settings)):
        assert (await replies(connection, 1))["r.1.0"].attempt == 1


async def test_a_worker_that_was_declared_dead_drops_its_work_and_comes_back_under_a_new_name(settings, connection):
    # Given a worker that holds calls
    server = Server(settings)
    async with living(server):
        old = server.worker
        await call(connection, 1, "wait")
        await call(connection, 2, "wait")
        await until(lambda: len(server.started) == 2)
        # When it is declared dead
        await connection.send("DEL", keys.alive(old))
        assert await connection.run(scripts.hand_back(old, 100, scripts.HandBackReason.DEAD, [BOX])) == 2
        await until(lambda: server.worker != old and len(server.cancelled) >= 2)
        # Then its work was cancelled, and it takes it up again like anybody
        assert {"r.1.0:1:0", "r.2.0:1:0"} == set(server.cancelled)
        server.gate.set()
        found = await replies(connection, 2)
        await until(lambda: server.stats()["held"] == 0)
    assert min(reply.attempt for reply in found.values()) >= 1
    assert server.counts["lapses"] == 1


async def test_mail_that_a_zombie_took_under_its_old_name_is_not_forgotten(settings, connection):
    # Given a worker that was declared dead, handed back, and does not know it yet
    server, judge = Server(settings), Server(settings)
    async with living(server, judge):
        await asyncio.sleep(0.4)
        old = server.worker
        await connection.send("DEL", keys.alive(old))
        await connection.run(scripts.hand_back(old, 100, scripts.HandBackReason.DEAD, [BOX]))
        # When mail is delivered to it under that name
        for n in range(3):
            await call(connection, n)
            await connection.send("XREADGROUP", "GROUP", keys.GROUP, old, "COUNT", 1, "STREAMS", keys.mailbox(BOX), ">")
        # Then every call is answered all the same
        assert set(await replies(connection, 3)) == {"r.0.0", "r.1.0", "r.2.0"}


async def test_mail_in_an_answer_that_was_lost_is_found_after_the_outage(settings, connection):
    # Given a worker, and mail that was given to it in an answer that never arrived
    server = Server(settings)
    async with living(server):
        server.intake.set_capacity(0)
        await asyncio.sleep(0.2)
        await call(connection, 1)
        await connection.send("XREADGROUP", "GROUP", keys.GROUP, server.worker, "STREAMS", keys.mailbox(BOX), ">")
        server.intake.set_capacity(4)
        await asyncio.sleep(0.1)
        assert server.started == []
        # When its connections break
        await connection.send("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        # Then it asks what it holds, and answers
        await replies(connection, 1)
        assert server.intake.counts["outages"] == 1
    assert server.started == ["r.1.0:1:0"]


async def test_what_is_answered_while_the_worker_asks_what_it_holds_is_not_run_again(settings, connection, monkeypatch):
    # Given a worker whose call is answered while it asks, after an outage, what it holds
    server = Server(settings)
    held = server.boxes.held

    async def meanwhile(*args):
        found = await held(*args)
        server.gate.set()
        await replies(connection, 1)
        await until(lambda: server.stats()["held"] == 0)
        return found

    monkeypatch.setattr(server.boxes, "held", meanwhile)
    async with living(server):
        await call(connection, 1, "wait")
        await until(lambda: server.started)
        await connection.send("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: server.gate.is_set() and server.stats()["held"] == 0)
        await asyncio.sleep(0.1)
    # Then it ran once
    assert server.started == ["r.1.0:1:0"]


async def test_calls_are_each_served_once_through_broken_connections(settings, connection):
    server = Server(settings)
    async with living(server):
        for n in range(60):
            await call(connection, n)
            if n % 10 == 5:
                await connection.send("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        found = await replies(connection, 60)
        await until(lambda: server.stats()["held"] == 0)
    assert await connection.send("XLEN", keys.mailbox("agent")) == len(found) == 60
    assert all(reply.fault is None for reply in found.values())
    assert sorted(server.started) == sorted(f"r.{n}.0:1:0" for n in range(60))


async def test_the_token_ids_of_earlier_answers_are_read_from_the_records_of_their_calls(settings, connection):
    # Given a rollout with two answers that have token ids, a tool's call between them, and one that this call does not follow
    def record(step: int, message: int, tokens: Tokens | None, kind: str = "generate") -> bytes:
        reply = Reply(0, 1.0, 2.0, "w")
        return encode_call(
            call_record(kind, step, 0.5, reply, answer=Generated(b"{}", "stop", Usage(), tokens), message=message)
        )

    first, second = Tokens(0, b"\1\0\0\0", b"\2\0\0\0", b"\0\0\0\0", [(0, 3)]), Tokens(2, b"", b"\5\0\0\0")
    of_a_judge = Tokens(0, b"\7\0\0\0", b"\7\0\0\0")
    records = [
        record(1, 1, first), record(2, 3, None), record(3, 5, second), record(3, 6, of_a_judge, "ask"), record(5, 7, second),
    ]  # fmt: skip
    await connection.send("RPUSH", keys.calls("r.7.0"), *records)
    server = Server(settings)
    async with living(server):
        one = Call("r.7.0", 5, 0, "generate", "r", "e", 7, 0.0)
        # Then a worker that has never seen it reads what it must build upon
        assert await server.history(one) == [(1, first), (5, second)]
        one.rollout = "r.8.0"
        assert await server.history(one) == []
