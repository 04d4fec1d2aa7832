"""The agent role: mail in, steps committed, and rollouts that end although something is wrong with them."""

from __future__ import annotations

import json
import time
from math import inf

import msgspec
import pytest
from gymq_workers.agent import limits
from gymq_workers.agent.machine import Machine
from gymq_workers.agent.worker import STRIKES, AgentWorker
from redis import Redis

from gymq.api.environment import EnvironmentSpec
from gymq.runtime.mailbox import Mail
from gymq.runtime.service_times import ServiceTimes
from gymq.store import runs, scripts
from gymq.store.runs import RunConfig
from gymq.store.scripts import ReplyOutcome
from gymq.wire.calls import Generated, Reply, Usage, decode_call, encode
from gymq.wire.message import Message, encode_message
from gymq.wire.task import Task, encode_task
from tests.support.redis_server import roll_back, snapshot
from tests.support.rollouts import BORN, address, letters
from tests.support.shard import keys

AGENT, MODEL = keys.mailbox("agent"), keys.mailbox("model:m")


@pytest.fixture
async def make(connection):
    """Makes a run of so many tasks."""

    async def make(rows: int = 1, name: str = "r", agent: str = "tool", text: str = "", born: float = BORN, **fields) -> None:
        await runs.create(connection, RunConfig(name, "world", agent, "m", created=born, **fields))
        await runs.add_environment(connection, name, EnvironmentSpec("world"))
        task = Task("t", "world", [encode_message(Message("user", text or name))])
        await connection.run(scripts.enqueue(name, "chunk", 1 << 60, [encode_task(task)] * rows))

    return make


@pytest.fixture
async def worker(settings, connection):
    """A worker that has connected; the test gives it its mail."""
    worker = AgentWorker(settings, {})
    await worker.boxes.create(connection)
    for one in (worker.connection, worker.reader, worker.life.connection):
        await one.connect()
    await worker.prepare()
    await worker.life.begin()
    yield worker
    await worker.close()
    for one in (worker.connection, worker.reader, worker.life.connection):
        await one.close()


async def work(worker) -> int:
    """Take what there is, and handle it."""
    mail = await worker.boxes.take(worker.reader, worker.worker, 100)
    await worker.intake.accept(mail)
    return len(mail)


async def answer(connection) -> None:
    """Answer all calls of the model."""
    for entry, fields in await connection.send("XRANGE", MODEL, "-", "+"):
        call = decode_call(fields[1])
        value = encode(Generated(encode_message(Message("assistant", "hi")), "stop", Usage()))
        reply = encode(Reply(call.n, 1.0, 2.0, "w", value=value))
        assert await connection.run(
            scripts.reply([scripts.ReplyEntry(call.rollout, call.step, call.n, reply, "", "", call.idempotency_token)])
        ) == [True]
        await connection.send("XDEL", MODEL, entry)


async def ended(connection, name: str = "r") -> list[dict]:
    return [json.loads(fields[7]) for _, fields in await connection.send("XRANGE", keys.results(name), "-", "+")]


async def test_rollouts_are_admitted_advanced_and_ended_and_their_mail_is_gone(worker, connection, make, no_leaks):
    await make(3)
    await runs.close(connection, "r")
    await worker.duties()
    assert await work(worker) == 3
    await answer(connection)
    assert await work(worker) == 3
    assert [record["status"] for record in await ended(connection)] == ["completed"] * 3
    assert worker.stats()["held"] == 0
    assert (worker.counts["applied"], worker.counts["ended"], worker.counts["stale"]) == (6, 3, 0)
    await runs.remove(connection, "r")


async def test_two_messages_of_one_rollout_are_handled_one_after_the_other(worker, connection, make):
    # Given a rollout that begins and is cancelled in one batch
    await make()
    await worker.duties()
    await runs.cancel(connection, "r")
    # When both are taken at once
    assert await work(worker) == 2
    # Then it has ended, and its first step stands in its record
    (record,) = await ended(connection)
    assert (record["status"], record["error"]["kind"], len(record["messages"])) == ("cancelled", "cancelled", 1)
    assert (worker.counts["applied"], worker.counts["conflicts"]) == (2, 0)


async def test_a_cancellation_wins_against_a_step_that_another_worker_made(worker, connection, make, monkeypatch):
    # Given a cancellation that was decided on version 1
    await make()
    await worker.duties()
    await work(worker)
    await runs.cancel(connection, "r")
    insist = worker.connection.insist
    moved = []

    async def insisting(call):
        if call.name == "commit" and not moved:
            moved.append(
                await connection.send("HINCRBY", keys.rollout(address("r.0.0")), "v", 1)
            )  # another worker commits first
        return await insist(call)

    monkeypatch.setattr(worker.connection, "insist", insisting)
    # When it is committed
    await work(worker)
    # Then it is decided again, and the rollout ends
    assert worker.counts["conflicts"] == 1
    assert [record["status"] for record in await ended(connection)] == ["cancelled"]


async def test_a_step_is_taken_up_by_another_worker_from_what_is_stored(worker, settings, connection, make):
    await make()
    await worker.duties()
    await work(worker)
    await answer(connection)
    await worker.forget()
    await work(worker)
    (record,) = await ended(connection)
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
    assert worker.counts["loaded"] == 1


async def test_mail_of_a_rollout_that_has_gone_on_or_is_gone_is_acknowledged(worker, connection, make):
    await make()
    await worker.duties()
    await work(worker)
    for rid in (address("r.0.0"), address("gone.0.0")):
        await connection.send("XADD", AGENT, "*", "r", rid, "v", 0)
    await work(worker)
    assert worker.counts["stale"] == 2
    assert worker.stats()["held"] == 0
    assert await connection.send("XLEN", AGENT) == 0
    assert await connection.send("HGET", keys.rollout(address("r.0.0")), "v") == b"1"


async def test_mail_that_killed_its_process_alone_three_times_ends_its_rollout_and_is_a_dead_letter(
    settings, worker, connection, make
):
    await make(2)
    await worker.duties()
    taken = await worker.boxes.take(worker.reader, worker.worker, 100)
    for strikes, one in zip((STRIKES, STRIKES - 1), taken, strict=True):
        mail = Mail(one.stream, one.id, one.fields, strikes + 2, strikes, "agent-x")
        await worker.handle([mail])
        await worker.handle([mail])  # it was delivered twice: there is one letter
    (record,) = await ended(connection)
    assert (record["rollout_id"], record["status"], record["error"]["kind"]) == ("r.0.0", "failed", "poison")
    (letter,) = [one.letter for one in await letters(settings)]
    assert (letter.id, letter.run, letter.role, letter.deaths, letter.strikes) == (f"{address('r.0.0')}:0", "r", "agent", 5, 3)
    assert letter.worker == "agent-x" and letter.decode_task().environment and b'"r"' in letter.config
    assert await connection.send("TTL", keys.dead) > 0


async def test_an_agent_that_is_not_installed_fails_its_rollouts_and_says_so(worker, connection, make):
    await make(agent="nobody", born=2.0)
    await worker.duties()
    await work(worker)
    (record,) = await ended(connection)
    assert record["error"]["kind"] == "agent" and "unknown agent 'nobody'" in record["error"]["message"]


async def test_a_defect_of_the_machine_fails_that_rollout_and_no_other(worker, connection, make, monkeypatch, caplog):
    # Given a machine that cannot advance one of two rollouts
    await make(2)
    await worker.duties()
    advance = Machine.advance

    def broken(self, replies):
        if self.live.rid == "r.0.0":
            raise ZeroDivisionError("a defect")
        return advance(self, replies)

    monkeypatch.setattr(Machine, "advance", broken)
    # When both are advanced
    await work(worker)
    # Then one has failed, and the other goes on
    (record,) = await ended(connection)
    assert (record["rollout_id"], record["error"]["kind"]) == ("r.0.0", "internal")
    assert "ZeroDivisionError: a defect" in record["error"]["message"]
    assert await connection.send("XLEN", MODEL) == 1
    assert "Traceback" in caplog.text


async def test_a_call_that_no_worker_answers_in_an_hour_is_sent_again(worker, connection, make, monkeypatch):
    # Given a rollout whose call is overdue
    monkeypatch.setattr(limits, "OVERDUE", 0.0)
    await make()
    await worker.duties()
    await work(worker)
    ((_, body),) = [(entry, fields[1]) for entry, fields in await connection.send("XRANGE", MODEL, "-", "+")]
    # When two workers look
    await worker.duties()
    await worker.duties()
    # Then it is woken once, and waits to send it again
    ((_, fields),) = await connection.send("XRANGE", AGENT, "-", "+")
    assert fields == [b"r", address("r.0.0").encode(), b"v", b"1", b"d", b"1"]
    await work(worker)
    assert await ended(connection) == []
    # and the answer that comes after all finds nothing
    call = decode_call(body)
    late = encode(Reply(call.n, 1.0, 2.0, "w"))
    assert await connection.run(
        scripts.reply([scripts.ReplyEntry(call.rollout, call.step, call.n, late, "", "", call.idempotency_token)])
    ) == [False]


async def test_a_rollout_that_is_woken_too_early_goes_on_waiting(worker, connection, make):
    await make()
    await worker.duties()
    await work(worker)
    await connection.send("ZADD", keys.due, 1, address("r.0.0"))
    await worker.duties()
    await work(worker)
    version, pending = await connection.send("HMGET", keys.rollout(address("r.0.0")), "v", "c1.0")
    assert (version, pending.partition(b" ")[0]) == (b"1", b"1")
    assert float(await connection.send("ZSCORE", keys.due, address("r.0.0"))) > 1e12
    await answer(connection)
    await work(worker)
    assert [record["status"] for record in await ended(connection)] == ["completed"]


async def test_a_run_that_took_a_removed_ones_name_is_rolled_out_as_what_it_is(worker, connection, make):
    # Given a run that was rolled out, and removed
    await make()
    await worker.duties()
    await work(worker)
    await runs.remove(connection, "r")
    # When another of its name comes
    await make(agent="nobody", born=2.0)
    await worker.duties()
    await work(worker)
    # Then it is another
    assert [record["agent"] for record in await ended(connection)] == ["nobody"]


async def test_a_rollout_whose_first_mail_was_lost_begins_when_it_is_due(worker, connection, make):
    # Given a rollout whose mail is gone
    await make()
    await worker.duties()
    await connection.send("XTRIM", AGENT, "MAXLEN", 0)
    # When it is due
    await connection.send("ZADD", keys.due, "XX", 1, *await connection.send("ZRANGE", keys.due, 0, -1))
    await worker.duties()
    await work(worker)
    # Then it has asked its model
    assert await connection.send("XLEN", MODEL) == 1


@pytest.mark.parametrize("known", [True, False], ids=["decided on its mail", "decided on what was read"])
async def test_no_rollout_is_forgotten_by_a_worker_that_redis_went_back_under(
    worker, connection, make, redis_url, monkeypatch, known
):
    # Given a worker that has taken mail, or has also read that its rollout has ended, when Redis loses all that
    await make()
    await worker.duties()
    with Redis.from_url(redis_url) as client:
        before = snapshot(client)
        mail = await worker.boxes.take(worker.reader, worker.worker, 100)
        before = before if known else snapshot(client)
        insist = worker.connection.insist

        async def lose(call):
            if call.name == "commit":
                roll_back(client, before)
            elif not known and call.name == "load_rollouts":
                await connection.send("DEL", *await connection.send("KEYS", keys.rollout("*")))
            monkeypatch.setattr(worker.connection, "insist", insist if call.name == "commit" else lose)
            return await insist(call)

        monkeypatch.setattr(worker.connection, "insist", lose)
        if not known:
            mail = [msgspec.structs.replace(one, fields=one.fields[:4]) for one in mail]
        # When it commits what it has decided
        await worker.intake.accept(mail)
    # Then the mail is delivered again, or decided again, and the rollout goes on
    if known:
        assert await work(worker) == 1
    assert await connection.send("XLEN", MODEL) == 1
    assert not worker.intake.held


async def test_steps_with_large_rows_are_loaded_and_committed_a_few_at_once(worker, connection, make, monkeypatch):
    # Given rows of 8 MiB
    await make(3, text="x" * (8 << 20))
    calls: dict[str, list[int]] = {"load_rollouts": [], "commit": []}
    run = worker.connection.run

    async def count(call):
        if call.name in calls:
            calls[call.name].append(len(call.arguments[0]))
        reply = await run(call)
        if call.name == "load_rollouts":
            calls[call.name][-1] = sum(len(one.task or b"") for one in reply)
        return reply

    monkeypatch.setattr(worker.connection, "run", count)
    # When their first steps are made
    await worker.duties()
    assert await work(worker) == 3
    # Then no script returns more than two of them, or takes more than one
    assert await connection.send("XLEN", MODEL) == 3
    assert not worker.intake.held
    assert max(calls["load_rollouts"]) < 17 << 20
    assert max(calls["commit"]) < 16 << 20


@pytest.mark.parametrize("old", ["admission", "cancellation", "reply", "due time", "call"])
async def test_nothing_that_is_left_of_a_removed_run_reaches_the_one_that_took_its_name(worker, connection, make, old):
    # Given a run that is removed, and one of its name that has begun
    await make()
    await worker.duties()
    ((_, admission),) = await connection.send("XRANGE", AGENT, "-", "+")
    await runs.remove(connection, "r")
    await connection.send("XTRIM", AGENT, "MAXLEN", 0)
    await make(text="new", born=2.0)
    await worker.duties()
    gone, (new,) = address("r.0.0"), await connection.send("SMEMBERS", keys.live("r"))
    if old == "admission":
        await connection.send("XTRIM", AGENT, "MAXLEN", 0)
    else:
        await work(worker)
    before = await connection.send("HGETALL", keys.rollout(new.decode()))
    # When something comes that is left of the old one
    answer = encode(
        Reply(0, 1.0, 2.0, "w", value=encode(Generated(encode_message(Message("assistant", "old")), "stop", Usage())))
    )
    fields = admission[2:] if old == "admission" else ["v", 1]
    match old:
        case "cancellation":
            fields = ["v", 0, "x", "run"]
        case "reply":
            assert await connection.run(scripts.reply([scripts.ReplyEntry(gone, 1, 0, answer)])) == [ReplyOutcome.STALE]
            fields = ["v", 1, "y", answer]
        case "due time":
            await connection.send("ZADD", keys.due, 1, gone)
            await worker.duties()
            fields = ["v", 1, "d", 1]
        case "call":
            assert await connection.run(scripts.pending_calls([scripts.CallKey(gone, 1, 0)])) == [False]
            assert not await connection.run(scripts.claim_call(gone, 1, 0, "0.0", "x", False))
    await connection.send("XADD", AGENT, "*", "r", gone, *fields)
    assert await work(worker) == 1
    # Then it changes nothing
    assert await connection.send("HGETALL", keys.rollout(new.decode())) == before
    assert await ended(connection) == []
    assert not worker.intake.held


class Times(ServiceTimes):
    """Times that the test sets: the server's clock, and since when all mailboxes have been served."""

    def __init__(self) -> None:
        super().__init__()
        self.at, self.served = 1e9, 0.0

    async def look(self, connection, mailboxes, everybody) -> None:
        pass

    def now(self) -> float:
        return self.at

    def since(self, *mailboxes: str) -> float:
        return self.served


async def look_at(worker, connection) -> bytes:
    """Have the one rollout looked at as one that is due; its version."""
    await connection.send("ZADD", keys.due, "XX", 1, address("r.0.0"))
    await worker.duties()
    assert await work(worker) == 1
    return await connection.send("HGET", keys.rollout(address("r.0.0")), "v")


@pytest.mark.parametrize("limit", [0.0, 60.0], ids=["no limit", "a limit of time"])
async def test_no_time_is_counted_in_which_a_mailbox_was_not_served(worker, connection, make, limit):
    # Given a rollout whose call is pending when everything goes down for two hours
    worker.times = Times()
    await make(max_seconds=limit)
    await worker.duties()
    await work(worker)
    # When it is looked at after that, before and after its model's worker is there
    worker.times.at += 7200
    for served in (inf, worker.times.at - 1):
        worker.times.served = served
        # Then it goes on waiting, and is looked at again when it may be time
        assert await look_at(worker, connection) == b"1"
        seconds = int((await connection.send("TIME"))[0])
        left = float(await connection.send("ZSCORE", keys.due, address("r.0.0"))) / 1000 - seconds
        assert left == pytest.approx(limit or limits.OVERDUE, abs=5)
    # And the time counts from then on
    worker.times.at += limit or limits.OVERDUE
    assert await look_at(worker, connection) == (None if limit else b"2")


async def test_a_machines_wrong_clock_harms_no_rollout(worker, connection, make, monkeypatch):
    # Given an agent whose machine's clock is 65 minutes ahead
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 3900)
    await make(max_seconds=60)
    await worker.duties()
    await work(worker)
    # When its rollout is looked at
    assert await look_at(worker, connection) == b"1"
    # Then it waits for its call, which bears the time of the server
    ((_, fields),) = await connection.send("XRANGE", MODEL, "-", "+")
    assert decode_call(fields[1]).queued == pytest.approx(right(), abs=5)
    await answer(connection)
    await work(worker)
    assert [record["status"] for record in await ended(connection)] == ["completed"]
