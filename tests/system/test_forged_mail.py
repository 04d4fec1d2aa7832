"""Mail and results that a forger writes: decoded by type, refused in one line, bounded in size, and no line break in a file."""

# ruff: noqa: E501
from __future__ import annotations

import asyncio
import time
from typing import Any

import msgpack
import pytest
from gymq_workers.agent.worker import AgentWorker
from gymq_workers.model.worker import ModelWorker
from gymq_workers.resource.worker import ResourceWorker

from gymq.api.environment import EnvironmentSpec
from gymq.client.consumer import Results
from gymq.errors import Fault
from gymq.store import runs, scripts
from gymq.store.run_status import read_status
from gymq.store.runs import RunConfig
from gymq.wire.calls import Call, Reply, decode_call, encode
from gymq.wire.message import Message, encode_message
from gymq.wire.task import Task, encode_task
from tests.support.rollouts import BORN, address
from tests.support.shard import keys

NOTHING = "it names no rollout and version, or has too many fields"
UNCANCELLED = "it cancels neither a run nor a group nor a rollout"
DEEP = b"\x91" * 5000
LIVE = address("r.0.0")


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
    ("a rollout of no incarnation", ["r", "r.0.0", "v", "0"], NOTHING),
    ("a rollout with a path", ["r", "../r.0.0~f4240", "v", "1"], NOTHING),
    ("a version of 5000 digits", ["r", LIVE, "v", "9" * 5000], NOTHING),
    ("5000 replies", ["r", LIVE, "v", "1", *["y", "x"] * 5000], NOTHING),
    ("an unknown rollout", ["r", "nobody.0.0~f4240", "v", "0"], None),
    ("a reply that is garbage", ["r", LIVE, "v", "1", "y", b"\xc1"], "MessagePack data is malformed: invalid opcode '\\xc1' (byte 0)"),
    ("a reply of another shape", ["r", LIVE, "v", "1", "y", listed("0", 1)], "Expected `array` of at least length 4, got 2"),
    ("a reply that is nested 5000 deep", ["r", LIVE, "v", "1", "y", DEEP], "Expected `array` of at least length 4, got 1"),
    ("two replies to one call", ["r", LIVE, "v", "1", *["y", encode(Reply(0, 0, 0, "w"))] * 2], "it has 2 replies and 1 calls are pending"),
    ("a cancellation of 10 kB", ["r", LIVE, "v", "1", "x", "run" * 3000], UNCANCELLED),
    ("a cancellation with a line break", ["r", LIVE, "v", "0", "x", "run\nrollout"], UNCANCELLED),
]  # fmt: skip

#: Name, a message to a model or a resource as its one field, and what its worker says; None: it answers with a fault that nobody waits for.
CALLS: list[tuple[str, bytes, str | None]] = [
    ("garbage", b"\xc1", "is no call"),
    ("a map", msgpack.packb({"rollout": "x"}), "is no call"),
    ("a pickle", b"\x80\x04\x95\x1d\x00\x00\x00", "is no call"),
    ("a negative length", call(length=-5), "is no call"),
    ("nested 5000 deep", DEEP, "is no call"),
    ("an unknown rollout", call(), None),
    ("a rollout with a path", call(rollout="../../x"), None),
    ("a tool that is an attribute", call(name="__class__"), None),
    ("a tool of 10 kB", call(name="x" * 10_000), None),
    ("a message that is garbage", call(kind="verify", length=1, messages=[b"{"]), None),
    ("a time-out that is NaN", call(kind="generate", timeout=float("nan")), "is no call"),
    ("a state that is garbage", call(state=b"\xc1", has_state=True), None),
]  # fmt: skip


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
    await runs.create(connection, RunConfig("r", "world", "tool", "m", created=BORN))
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
async def test_mail_to_an_agent_that_is_forged_ends_nothing(agent, connection, heard, fields: list[Any], reason: str | None):
    entry = await connection.send("XADD", keys.mailbox("agent"), "*", *fields)
    before = await connection.send("HGETALL", keys.rollout(LIVE))
    await work(agent)
    where = f"mail {entry.decode()} in {keys.mailbox('agent')}"
    assert heard() == ([] if reason is None else [f"{where} is no mail of a rollout: {reason}"])
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
async def test_calls_that_are_forged_are_answered_or_dropped(settings, connection, caplog, heard, role: str):
    if role == "model":
        worker, box = ModelWorker(settings, {"model": "scripted"}), "model:scripted"
    else:
        worker, box = ResourceWorker(settings, {"environments": "weather"}), "resource:weather"
    await started(worker, connection)
    heard()
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
        assert "Traceback" not in caplog.text, name
        lines = heard()
        if said is not None:
            assert len(lines) == 1 and said in lines[0], (name, lines)
    assert await pending(connection, box) == 0
    assert not await connection.send("KEYS", keys.rollout("*"))
    await stopped(worker)


#: Entries in a run's results: fields, as a forger may write them.
RESULTS: dict[str, list[Any]] = {
    "garbage": [b"\xff", b"\xfe"],
    "a row of 12 digits": ["r", "r.999999999999.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.999999999999.0",}'],
    "another record": ["r", "r.0.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.0.1",}'],
    "two lines": ["r", "r.0.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.0.0",\n}'],
    "cut off": ["r", "r.0.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.0.0",'],
}


async def test_results_that_are_forged_reach_no_sink(settings, connection, heard):
    await runs.create(connection, RunConfig("r", "world", "tool", "m", created=BORN))
    results = Results("r", "sink", settings=settings)
    await results.start()
    for fields in RESULTS.values():
        await connection.send("XADD", keys.results("r"), "*", *fields)
    await connection.send(
        "XADD", keys.results("r"), "*", "r", "r.0.0", "l", "1", "n", "1", "b", '{"rollout_id":"r.0.0","run":"r"}'
    )
    assert [rollout.id for rollout in await results.read() or ()] == ["r.0.0"]
    lines = heard()
    assert len(lines) == len(RESULTS)
    assert all(line.endswith("in the results of run 'r' is no rollout of it; it is left out") for line in lines)
    assert (await connection.send("XPENDING", keys.results("r"), "sink"))[0] == 1
    await results.close()
