"""What is written into mailboxes, queues and results by somebody else is refused in one line, and work goes on."""

# ruff: noqa: E501
from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import msgpack
import pytest
from gymq_workers.agent.worker import AgentWorker
from gymq_workers.model.worker import ModelWorker
from gymq_workers.resource.worker import ResourceWorker
from redis import Redis

from gymq.api.environment import EnvironmentSpec
from gymq.client.consumer import Results
from gymq.errors import Fault
from gymq.ops.dead_letters import find_letter, rollout_messages
from gymq.runtime import newer_mail
from gymq.runtime.dead_letters import DeadLetter
from gymq.settings import Settings
from gymq.store import runs, scripts
from gymq.store.run_status import read_status
from gymq.store.runs import RunConfig
from gymq.store.sharded import Shards
from gymq.wire.calls import SCHEMA, Call, Generated, Reply, RequestParameters, Usage, decode_call, encode
from gymq.wire.message import Message, encode_message
from gymq.wire.task import Task, encode_task
from tests.support.rollouts import letters, produce, status, weather
from tests.support.shard import keys
from tests.support.waiting import wait_until

NOTHING = "it names no rollout and version, or has too many fields"
UNCANCELLED = "it cancels neither a run nor a group nor a rollout"
DEEP = b"\x91" * 5000
LIVE = "r.0.0"


def call(**fields: Any) -> bytes:
    given = {"rollout": "x.0.0", "step": 1, "n": 0, "kind": "tool", "run": "x", "environment": "weather", "row": 0}
    return encode(Call(**{**given, "queued": time.time(), "name": "get_weather", "arguments": '{"city": "a"}', **fields}))


def listed(*values: Any) -> bytes:
    return msgpack.packb(list(values))


TURN = encode_message(Message("user", "go"))
TASK = encode_task(Task("", "weather", [TURN], b"{}"))


#: Name, fields of a message to the agents, and why it is refused; None: it is passed over in silence, as is mail that
#: comes twice.
AGENT: list[tuple[str, list[Any], str | None]] = [
    ("garbage", [b"\xff\x00", b"\xfe"], NOTHING),
    ("a single pair", ["r", LIVE], NOTHING),
    ("no version", ["r", LIVE, "y", encode(Reply(0, 0, 0, "w"))], NOTHING),
    ("a rollout of one part", ["r", "r", "v", "1"], NOTHING),
    ("a rollout of two parts", ["r", "r.0", "v", "1"], NOTHING),
    ("a rollout whose row is text", ["r", "r.x.0", "v", "1"], NOTHING),
    ("a rollout with a path", ["r", "../r.0.0", "v", "1"], NOTHING),
    ("a rollout that is no UTF-8", ["r", b"r\xff.0.0", "v", "1"], NOTHING),
    ("a rollout with a row of 400 digits", ["r", f"r.{'1' * 400}.0", "v", "1"], NOTHING),
    ("a version that is text", ["r", LIVE, "v", "one"], NOTHING),
    ("a negative version", ["r", LIVE, "v", "-1"], NOTHING),
    ("a fractional version", ["r", LIVE, "v", "1.5"], NOTHING),
    ("a version of 5000 digits", ["r", LIVE, "v", "9" * 5000], NOTHING),
    ("an empty version", ["r", LIVE, "v", ""], NOTHING),
    ("5000 replies", ["r", LIVE, "v", "1", *["y", "x"] * 5000], NOTHING),
    ("a large version", ["r", LIVE, "v", "999999999999999"], None),
    ("an unknown rollout", ["r", "nobody.0.0", "v", "0"], None),
    ("an unknown rollout with a task", ["r", "nobody.0.0", "v", "0", "t", encode_task(Task("", "weather", []))], None),
    ("a task that is garbage", ["r", "nobody.0.0", "v", "0", "t", b"\xc1"], None),
    ("a reply that is garbage", ["r", LIVE, "v", "1", "y", b"\xc1"], "MessagePack data is malformed: invalid opcode '\\xc1' (byte 0)"),
    ("an empty reply", ["r", LIVE, "v", "1", "y", ""], "Input data was truncated"),
    ("a reply of another shape", ["r", LIVE, "v", "1", "y", listed("0", 1)], "Expected `array` of at least length 4, got 2"),
    ("a reply that is nested 5000 deep", ["r", LIVE, "v", "1", "y", DEEP], "Expected `array` of at least length 4, got 1"),
    ("no reply", ["r", LIVE, "v", "1"], "it has 0 replies and 1 calls are pending"),
    ("two replies to one call", ["r", LIVE, "v", "1", *["y", encode(Reply(0, 0, 0, "w"))] * 2], "it has 2 replies and 1 calls are pending"),
    ("a reply of a number that is NaN", ["r", LIVE, "v", "1", "y", listed(float("nan"), 0, 0, "w")], "Expected `int`, got `float` - at `$[0]`"),
    ("a wait that is text", ["r", LIVE, "v", "1", "y", listed(0, 0, 0, "w", None, b"", 0, "long")], "Expected `float`, got `str` - at `$[7]`"),
    ("due, with a reply", ["r", LIVE, "v", "1", "d", "1", "y", encode(Reply(0, 0, 0, "w"))], "it has 1 replies and 0 calls are pending"),
    ("due, long before its time", ["r", LIVE, "v", "1", "d", "1"], None),
    ("due, with a value that is garbage", ["r", LIVE, "v", "1", "d", b"\xff"], None),
    ("due, of another step", ["r", LIVE, "v", "0", "d", "1"], None),
    ("a cancellation of nothing", ["r", LIVE, "v", "1", "x", ""], UNCANCELLED),
    ("a cancellation of 10 kB", ["r", LIVE, "v", "1", "x", "run" * 3000], UNCANCELLED),
    ("a cancellation with a line break", ["r", LIVE, "v", "0", "x", "run\nrollout"], UNCANCELLED),
    ("a cancellation behind an x", ["r", LIVE, "v", "1", "y", "x", "x", "all"], UNCANCELLED),
    ("a cancellation of an unknown rollout", ["r", "nobody.0.0", "v", "0", "x", "run"], None),
    ("strikes that are text", ["r", LIVE, "v", "1", "k", "many", "w", "v", "a", "2"], "it has 0 replies and 1 calls are pending"),
    ("strikes of 5000 digits", ["r", LIVE, "v", "1", "k", "9" * 5000, "w", "v", "a", "2"], "it has 0 replies and 1 calls are pending"),
    ("a victim that is no UTF-8", ["r", LIVE, "v", "1", "k", "1", "w", b"\xff", "a", "2"], "it has 0 replies and 1 calls are pending"),
    ("a count of deliveries that is text", ["r", LIVE, "v", "1", "a", "many"], "it has 0 replies and 1 calls are pending"),
]  # fmt: skip

#: Name, a message to a model or a resource as its one field, and what its worker says; None: it answers with a fault that nobody waits for.
CALLS: list[tuple[str, bytes, str | None]] = [
    ("garbage", b"\xc1", "is no call"),
    ("nothing", b"", "is no call"),
    ("a map", msgpack.packb({"rollout": "x"}), "is no call"),
    ("a pickle", b"\x80\x04\x95\x1d\x00\x00\x00", "is no call"),
    ("too few fields", listed("x.0.0", 1), "is no call"),
    ("a row that is text", listed("x.0.0", 1, 0, "tool", "x", "weather", "0", 0.0), "is no call"),
    ("a kind that is not known", listed("x.0.0", 1, 0, "exec", "x", "weather", 0, 0.0), "is no call"),
    ("messages of another kind", listed("x.0.0", 1, 0, "tool", "x", "weather", 0, 0.0, 1, 0, [3]), "is no call"),
    ("a negative step", call(step=-1), "is no call"),
    ("a negative length", call(length=-5), "is no call"),
    ("nested 5000 deep", DEEP, "is no call"),
    ("an unknown rollout", call(), None),
    ("a rollout with a path", call(rollout="../../x"), None),
    ("an unknown environment", call(environment="os:system"), None),
    ("an environment that is installed and not served", call(environment="counter"), None),
    ("a tool that is a hook", call(name="verify"), None),
    ("a tool that is an attribute", call(name="__class__"), None),
    ("a tool with a path", call(name="../x"), None),
    ("a tool of 10 kB", call(name="x" * 10_000), None),
    ("arguments that are code", call(arguments="__import__('os')"), None),
    ("verify of what there is not", call(kind="verify"), None),
    ("generate of what there is not", call(kind="generate"), None),
    ("a plan that is garbage", call(kind="generate", parameters=b"\xc1", length=1, messages=[b"{}"]), None),
    ("a message that is garbage", call(kind="verify", length=1, messages=[b"{"]), None),
    ("a time-out that is NaN", call(kind="generate", timeout=float("nan")), "is no call"),
    ("a negative time-out", call(kind="generate", timeout=-1.0), "is no call"),
    ("a question without a plan", call(kind="ask", messages=[encode_message(Message("user", "go"))]), None),
    ("a question with a plan that is garbage", call(kind="ask", parameters=b"\xc1"), None),
    ("a question that is garbage", call(kind="ask", parameters=encode(RequestParameters()), messages=[b"{"], length=1), None),
    ("a question of nothing", call(kind="ask", parameters=encode(RequestParameters())), None),
    ("an answer that is garbage", call(kind="verify", answer=b"{", note=b"\xc1", task=TASK, length=1, messages=[TURN]), None),
    ("a note that is garbage", call(kind="respond", answer=TURN, note=b"\xc1", task=TASK, length=1, messages=[TURN]), None),
    ("a task that is garbage", call(kind="verify", task=b"\xc1", length=1, messages=[b'{"role":"user"}']), None),
    ("a length of 10^15", call(kind="verify", length=10**15), None),
    ("a state that is garbage", call(state=b"\xc1", has_state=True), None),
]  # fmt: skip


def test_all_forged_mail_differs():
    assert len({case[0] for case in AGENT}) == len(AGENT)
    assert len({case[0] for case in CALLS}) == len(CALLS)
    assert len(AGENT) + len(CALLS) > 50


async def started(worker, connection):
    await worker.boxes.create(connection)
    for one in (worker.connection, worker.reader, worker.life.connection):
        await one.connect()
    await worker.prepare()
    await worker.life.begin()
    return worker


async def stopped(worker) -> None:
    await worker.close()
    for one in (worker.connection, worker.reader, worker.life.connection):
        await one.close()


async def pending(connection, box: str) -> int:
    return (await connection.send("XPENDING", keys.mailbox(box), keys.GROUP))[0]


@pytest.fixture
async def agent(settings, connection):
    """An agent worker with one rollout, whose first call is pending."""
    await runs.create(connection, RunConfig("r", "world", "tool", "m"))
    await runs.add_environment(connection, "r", EnvironmentSpec("world"))
    await connection.run(
        scripts.enqueue("r", "chunk", 1000, [encode_task(Task("t", "world", [encode_message(Message("user", "go"))]))])
    )
    worker = await started(AgentWorker(settings, {}), connection)
    await worker._admit()
    await work(worker)
    yield worker
    await stopped(worker)


async def work(worker) -> None:
    await worker.intake.accept(await worker.boxes.take(worker.reader, worker.worker, 100))


@pytest.mark.parametrize(("fields", "reason"), [pytest.param(*case[1:], id=case[0]) for case in AGENT])
async def test_mail_to_an_agent_that_is_forged_ends_nothing(agent, connection, capsys, fields: list[Any], reason: str | None):
    entry = await connection.send("XADD", keys.mailbox("agent"), "*", *fields)
    before = await connection.send("HGETALL", keys.rollout(LIVE))
    await work(agent)
    said = capsys.readouterr().err
    if reason is None:
        assert said == ""
    else:
        assert said == f"gymq: mail {entry.decode()} in {keys.mailbox('agent')} is no mail of a rollout: {reason}\n"
    assert await pending(connection, "agent") == 0
    assert not agent.stats()["held"]
    assert await connection.send("HGETALL", keys.rollout(LIVE)) == before
    # And the rollout goes on
    answer = decode_call((await connection.send("XRANGE", keys.mailbox("model:m"), "-", "+"))[0][1][1])
    fault = Fault("model", "the end")
    await connection.run(
        scripts.reply(
            [scripts.ReplyEntry(LIVE, answer.step, 0, encode(Reply(0, 0, 0, "w", fault)), token=answer.idempotency_token)]
        )
    )
    await work(agent)
    assert (await read_status(connection, "r")).by_status == {"failed": 1}


@pytest.mark.parametrize("role", ["model", "resource"])
async def test_calls_that_are_forged_are_answered_or_dropped(settings, connection, capsys, role: str):
    if role == "model":
        worker, box = ModelWorker(settings, {"model": "scripted"}), "model:scripted"
    else:
        worker, box = ResourceWorker(settings, {"environments": "weather"}), "resource:weather"
    await started(worker, connection)
    named = [
        (f"a field {field!r}", field, b"\xc1", "is no call")
        for field in (b"", b"\xff\xfe", b"cx", b"c-1", b"z9", b"c2.0", b"c" + b"9" * 5000)
    ]
    for name, field, body, said in [*((name, b"c", body, said) for name, body, said in CALLS), *named]:
        await connection.send("XADD", keys.mailbox(box), "*", field, body)
        await work(worker)
        limit = time.monotonic() + 20
        while worker.stats()["held"] and time.monotonic() < limit:
            await asyncio.sleep(0.01)
        assert not worker.stats()["held"], name
        assert worker.failure is None, name
        heard = capsys.readouterr().err
        assert "Traceback" not in heard, name
        if said is not None:
            assert said in heard and heard.count("\n") == 1, (name, heard)
    assert await pending(connection, box) == 0
    assert not await connection.send("KEYS", keys.rollout("*"))
    await stopped(worker)


async def test_calls_that_are_marked_newer_are_put_aside_only_if_they_are_mail(settings, connection, capsys):
    worker = await started(ResourceWorker(settings, {"environments": "weather"}), connection)
    box = "resource:weather"
    await connection.send("XADD", keys.mailbox(box), "*", *[f"c{SCHEMA + 1}", "x"] * 5000)
    await work(worker)
    await asyncio.sleep(0.05)
    assert "is no call: it has 5000 fields" in capsys.readouterr().err
    for fields in (
        ["s", "one", "c", "x"],
        ["s", "1"],
        ["c", "x"],
        ["x", "1", "c", "x"],
        ["s", str(SCHEMA), *["c", "x"] * 5000],
    ):
        await connection.send("XADD", keys.newer(box), "*", *fields)
    await connection.send("XADD", keys.newer(box), "*", "s", str(SCHEMA), "c", "x")
    await newer_mail.unpark(worker.life.connection, worker.boxes)
    assert capsys.readouterr().err == "gymq: 5 messages that were put aside as newer are no mail; they were dropped\n"
    assert not await connection.send("EXISTS", keys.newer(box))
    await work(worker)
    await asyncio.sleep(0.05)
    assert capsys.readouterr().err.count("is no call") == 1
    assert not worker.stats()["held"] and worker.failure is None
    await stopped(worker)


@pytest.mark.parametrize("value", [b"", b"\xc1", DEEP, listed("x"), listed(b"\xff", 3, [])])
async def test_a_reply_of_garbage_ends_its_rollout_in_one_line(agent, connection, capsys, value: bytes):
    await connection.send(
        "XADD", keys.mailbox("agent"), "*", "r", LIVE, "v", "1", "y", encode(Reply(0, 0, 0, "w", None, value))
    )
    await work(agent)
    said = capsys.readouterr().err
    assert "is no mail of a rollout: what a reply brings cannot be read: " in said and said.count("\n") == 1
    assert (await read_status(connection, "r")).by_status == {"failed": 1}
    assert await pending(connection, "agent") == 0 and not agent.stats()["held"]


async def test_a_reply_to_a_call_that_waits_to_be_sent_again_is_refused(agent, connection, capsys):
    fault = encode(Reply(0, 0, 0, "w", Fault("model_unavailable", "away")))
    await connection.send("XADD", keys.mailbox("agent"), "*", "r", LIVE, "v", "1", "y", fault)
    await work(agent)
    capsys.readouterr()
    before = await connection.send("HGETALL", keys.rollout(LIVE))
    forged = encode(Reply(0, 0, 0, "w", None, encode(Generated(TURN, "stop", Usage()))))
    await connection.send("XADD", keys.mailbox("agent"), "*", "r", LIVE, "v", "2", "y", forged)
    await work(agent)
    assert "it has 1 replies and 0 calls are pending" in capsys.readouterr().err
    assert await connection.send("HGETALL", keys.rollout(LIVE)) == before


async def test_nothing_is_due_before_a_rollout_has_begun(settings, connection, capsys):
    await runs.create(connection, RunConfig("r", "world", "tool", "m", max_seconds=5.0))
    await runs.add_environment(connection, "r", EnvironmentSpec("world"))
    await connection.run(scripts.enqueue("r", "chunk", 1000, [encode_task(Task("t", "world", [TURN]))]))
    worker = await started(AgentWorker(settings, {}), connection)
    await connection.send("XADD", keys.mailbox("agent"), "*", "r", LIVE, "v", "0", "d", "1")
    await worker._admit()
    await work(worker)
    assert "nothing is due before the rollout has begun" in capsys.readouterr().err
    assert (await read_status(connection, "r")).live == 1
    assert await connection.send("XLEN", keys.mailbox("model:m")) == 1
    await stopped(worker)


async def test_a_worker_that_nobody_registered_ends_nobody(settings, connection, capsys):
    worker = await started(AgentWorker(settings, {}), connection)
    for name, info in {"a": b"{", "b": b"[]", "c": b'{"mailboxes": 3}', "d": b"dead\xff", "e": b"{}"}.items():
        await connection.send("HSET", keys.workers, name, info)
    worker.life._connected -= 1000
    for _ in range(2):
        await worker.life.sweep()
        worker.life._missing = {name: since - 1000 for name, since in worker.life._missing.items()}
    assert await connection.send("HKEYS", keys.workers) == [worker.worker.encode()]
    assert capsys.readouterr().err.count("is no worker: its entry in the registry cannot be read") == 5
    await stopped(worker)


#: What a forger may put among the dead letters.
LETTERS: list[list[Any]] = [
    [b"\xff", b"\xfe"],
    ["b", ""],
    ["b", b"\xc1"],
    ["b", DEEP],
    ["b", listed("r.0.0:1:0", "r.0.0")],
    ["b", encode(DeadLetter("r.0.0:1:0", "r.0.0", "agent", "agent", "act", "tool", [], b"", b""))],
    ["b", encode(DeadLetter("r.0.0:1:0", "r.0.0", "agent", "agent", "act", "tool", [b"r"], b"", b""))],
    ["b", encode(DeadLetter("r.0.0:1:0", "r.0.0", "model", "model:m", "generate", "m", [b"c", b"\xc1"], b"", b""))],
    ["b", encode(DeadLetter("r.0.0:1:0", "r.0.0", "agent", "agent", "act", "tool", [b"r", b"x"], b"\xc1", b""))],
    ["b", encode(DeadLetter("r.0.0:1:0", "r.0.0", "agent", "agent", "act", "tool", [b"r", b"x"], b"", b"{"))],
]


async def test_dead_letters_that_are_forged_are_left_out(settings, connection, capsys):
    real = DeadLetter("r.1.0:1:0", "r.1.0", "model", "model:m", "generate", "m", [b"c", call(rollout="r.1.0")], TASK, b"")
    for fields in [*LETTERS, ["b", encode(real)]]:
        await connection.send("XADD", keys.dead, "*", *fields)
    for fields in RESULTS.values():
        await connection.send("XADD", keys.results("r"), "*", *fields)
    await connection.send("XADD", keys.results("r"), "*", "r", "r.1.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.1.0",}')
    found = await letters(settings)
    assert [one.letter.id for one in found] == ["r.1.0:1:0"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(LETTERS)
    assert all(f"in {keys.dead} is no dead letter: " in line and line.endswith("; it is left out") for line in lines)
    shards = Shards(settings, "test")
    await shards.connect()
    assert await rollout_messages(await find_letter(shards, "r.1.0:1:0")) == []
    await shards.close()


async def test_mail_with_a_nonsensical_count_can_be_handed_back(settings, connection):
    first = await started(AgentWorker(settings, {}), connection)
    for fields in (["r", LIVE, "v", "1", "a", "many"], ["x", "y"] * 4000):
        await connection.send("XADD", keys.mailbox("agent"), "*", *fields)
    assert len(await first.boxes.take(first.reader, first.worker, 100)) == 2
    await first.life.leave()
    assert await pending(connection, "agent") == 0
    assert await connection.send("XLEN", keys.retry("agent")) == 1
    await stopped(first)


#: Entries in a run's results: fields, as a forger may write them.
RESULTS: dict[str, list[Any]] = {
    "garbage": [b"\xff", b"\xfe"],
    "no commit number": ["r", "r.0.0", "l", "1", "n", "x", "b", '{"rollout_id":"r.0.0",}'],
    "a row of 12 digits": ["r", "r.999999999999.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.999999999999.0",}'],
    "too few": ["r", "r.0.0"],
    "no rollout": ["r", "x", "l", "1", "n", "1", "b", "{}"],
    "another run": ["r", "q.0.0", "l", "1", "n", "1", "b", '{"rollout_id":"q.0.0",}'],
    "another record": ["r", "r.0.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.0.1",}'],
    "two lines": ["r", "r.0.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.0.0",\n}'],
    "a path": ["r", "r.../../x.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.../../x.0",}'],
    "text as a row": ["r", "r.a.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.a.0",}'],
    "cut off": ["r", "r.0.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.0.0",'],
}


async def test_results_that_are_forged_reach_no_sink(settings, connection, capsys):
    await runs.create(connection, RunConfig("r", "world", "tool", "m"))
    results = Results("r", "sink", settings=settings)
    await results.start()
    for fields in RESULTS.values():
        await connection.send("XADD", keys.results("r"), "*", *fields)
    await connection.send(
        "XADD", keys.results("r"), "*", "r", "r.0.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.0.0","run":"r"}'
    )
    assert [rollout.id for rollout in await results.read() or ()] == ["r.0.0"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(RESULTS)
    assert all(line.endswith("in the results of run 'r' is no rollout of it; it is left out") for line in lines)
    assert (await connection.send("XPENDING", keys.results("r"), "sink"))[0] == 1
    await results.close()


async def test_results_that_are_forged_reach_no_consumer_of_several_shards(redis_url, capsys):
    both = Settings(redis_url=f"{redis_url},{redis_url.rpartition('/')[0]}/{int(redis_url.rpartition('/')[2] or 0) + 1}")
    shards = Shards(both, "test")
    await shards.connect()
    try:
        await shards.create(RunConfig("r", "world", "tool", "m"))
        results = Results("r", "sink", settings=both)
        await results.start()
        # Row 1 is shard 1's: who acknowledges it asks there.
        for row in ("0", "1"):
            record = f'{{"rollout_id":"r.{row}.0"}}'.replace('"}', '",}')
            await shards.first.send(
                "XADD", shards.first.keys.results("r"), "*", "r", f"r.{row}.0", "l", "1", "n", "1", "b", record
            )
        got: list[str] = []
        limit = time.monotonic() + 10
        while time.monotonic() < limit and not got:
            got += [rollout.id for rollout in await results.read(200) or ()]
        assert got == ["r.0.0"]
        assert capsys.readouterr().err.count("is no rollout of it; it is left out") == 1
        assert (await shards.first.send("XPENDING", shards.first.keys.results("r"), "sink"))[0] == 1
        await results.close()
    finally:
        await shards.connections[1].send("FLUSHDB")
        await shards.close()


# --- real processes ---

PICKLE = b"cos\nsystem\n(S'touch pwned'\ntR."


def celery_message(queue: str, task: str, args: Any, content_type: str = "application/json", body: Any = None) -> str:
    """A message as Celery's Redis transport reads it from a list."""
    return json.dumps(
        {
            "body": json.dumps([args, {}, {}]) if body is None else body,
            "content-encoding": "utf-8" if body is None else "binary",
            "content-type": content_type,
            "headers": {"lang": "py", "task": task, "id": os.urandom(8).hex(), "root_id": None, "parent_id": None, "group": None},
            "properties": {
                "correlation_id": "c", "delivery_mode": 2, "priority": 0, "delivery_tag": os.urandom(8).hex(),
                "delivery_info": {"exchange": "", "routing_key": queue},
                "body_encoding": "utf-8" if body is None else "base64",
            },
        }
    )  # fmt: skip


def test_nothing_that_is_sent_ends_a_worker_and_no_pickle_is_opened(farm, tmp_path):
    import base64

    processes = [farm.start("agent"), farm.start("model", model="scripted"), farm.start("resource", environments="weather")]
    processes.append(farm.start("executor", processes=1))
    farm.wait_for(3)
    with Redis.from_url(farm.settings.redis_url) as redis:
        for _, fields, _ in AGENT:
            redis.execute_command("XADD", keys.mailbox("agent"), "*", *fields)
        for _, body, _ in CALLS:
            for box in ("model:scripted", "resource:weather"):
                redis.execute_command("XADD", keys.mailbox(box), "*", "c", body)
        for args in ([3, [], 1], ["../x", "c", []], ["nobody", "c", [1]], [], ["r"], [None, None, None], ["r", "c", 1, 2]):
            redis.lpush("gymq.rollouts", celery_message("gymq.rollouts", "gymq.enqueue", args))
        for args in ([""], ["!!"], [None], [], [3], [base64.b64encode(b"\xc1").decode()], [{"a": 1}], ["x", "y"]):
            redis.lpush("gymq.isolated", celery_message("gymq.isolated", "gymq.isolated", args))
        for queue in ("gymq.rollouts", "gymq.isolated"):
            body = base64.b64encode(PICKLE).decode()
            redis.lpush(queue, celery_message(queue, "gymq.enqueue", [], "application/x-python-serialize", body))
            redis.lpush(queue, celery_message(queue, "os.system", ["touch pwned"]))
        wait_until(lambda: not redis.llen("gymq.rollouts") and not redis.llen("gymq.isolated"), 30, "the queues to be empty")
    produce(farm.settings, RunConfig("r", "weather", "tool", "scripted"), weather(20), consumers=["sink"])
    done = farm.finish("r", tmp_path / "out.jsonl")
    assert [record["status"] for record in done] == ["completed"] * 20
    assert [process.poll() for process in processes] == [None] * 4
    assert status(farm.settings, "r").state == "done"
    assert not list(tmp_path.rglob("pwned")) and not os.path.exists("pwned")
    logs = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    assert "Refusing to deserialize" in logs["agent1.log"] and "Refusing to deserialize" in logs["executor4.log"]
    assert "is no call" in logs["model2.log"] and "is no call" in logs["resource3.log"]
    assert "is no mail of a rollout" in logs["agent1.log"]
    assert "a message to gymq.isolated is no call" in logs["executor4.log"]
    assert "gymq: gymq.enqueue of chunk 'c' of run '../x': run name '../x'" in logs["agent1.log"]
