"""The resource role: time limits, calls that must not be repeated, and what it forgets."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest
from gymq_workers.resource.worker import UNKNOWN, ResourceWorker

from gymq import plugins
from gymq.api.environment import Environment, Opening, tool
from gymq.errors import CallError, UnknownName
from gymq.wire.calls import Call, Opened, Scored, ToolResult
from gymq.wire.message import Message, encode_message
from gymq.wire.task import Task, encode_task
from tests.support.shard import keys


class Bank(Environment):
    name = "bank"

    def __init__(self) -> None:
        self.paid = 0
        self.together = threading.Barrier(4)

    @tool(once=True)
    def pay(self) -> str:
        """Pay."""
        self.paid += 1
        return "paid"

    @tool(timeout=0.1)
    async def queue(self) -> str:
        """Wait."""
        await asyncio.sleep(30)

    @tool()
    def meet(self) -> str:
        """Wait, without a loop, until four calls of it run at once."""
        self.together.wait(20)
        return "met"

    def open(self, messages):
        return Opening(messages=[Message("system", f"rules for {messages.last.text}")])

    def verify(self, messages):
        return float(len(messages))


@pytest.fixture
def bank(monkeypatch):
    bank = Bank()
    monkeypatch.setattr(plugins, "points", lambda group: {"bank": None})
    monkeypatch.setattr(plugins, "environment", lambda name: bank)
    return bank


@pytest.fixture
async def worker(settings, bank):
    """A worker that has connected; it takes no mail."""
    worker = ResourceWorker(settings, {})
    await worker.connection.connect()
    await worker.life.connection.connect()
    await worker.life.begin()
    yield worker
    await worker.connection.close()
    await worker.life.connection.close()


def call(name: str, kind: str = "tool", **fields) -> Call:
    return Call("r.0.0", 1, 0, kind, "r", "bank", 0, 0.0, name=name, arguments="{}", **fields)


async def content(worker, one: Call) -> str:
    result = msgspec.msgpack.decode(await worker.serve(one), type=ToolResult)
    return msgspec.json.decode(result.content)


async def pending(connection) -> None:
    """The rollout waits for the call."""
    await connection.send("HSET", keys.rollout("r.0.0"), "v", 1, "c1.0", 1)


async def test_a_rollout_is_opened_with_the_messages_of_its_task_and_they_are_no_part_of_the_conversation_yet(worker):
    # Given a rollout that is being opened, when that is done
    task = encode_task(Task("", "bank", [encode_message(Message("user", "go"))]))
    opened = msgspec.msgpack.decode(await worker.serve(call("", "open", task=task)), type=Opened)
    assert opened.messages == [encode_message(Message("system", "rules for go"))]
    # Then a later call is told of a conversation that begins otherwise
    conversation = [*opened.messages, encode_message(Message("user", "go")), encode_message(Message("assistant", "done"))]
    later = call("", "respond", messages=conversation, length=3)
    assert (await worker.conversation(later)).messages == conversation


async def test_a_call_that_must_not_be_repeated_runs_once_and_is_marked(worker, connection, bank):
    await pending(connection)
    assert await content(worker, call("pay")) == "paid"
    assert bank.paid == 1
    assert await connection.send("HGET", keys.rollout("r.0.0"), "o1.0") == worker.worker.encode()


async def test_a_call_that_a_dead_worker_began_is_not_run_and_the_model_is_told(worker, connection, bank):
    await pending(connection)
    await connection.send("HSET", keys.rollout("r.0.0"), "o1.0", "resource-dead")
    assert await content(worker, call("pay")) == UNKNOWN
    assert bank.paid == 0


async def test_a_call_of_a_rollout_that_has_ended_is_not_run_and_leaves_nothing(worker, connection, bank, no_leaks):
    with pytest.raises(CallError) as error:
        await worker.serve(call("pay"))
    assert error.value.fault.kind == "cancelled"
    assert bank.paid == 0
    assert await connection.send("EXISTS", keys.rollout("r.0.0")) == 0


async def test_a_mark_whose_answer_was_lost_is_known_again(worker, connection, bank):
    # Given a worker whose connection breaks while it marks a call
    await pending(connection)
    await connection.send("HSET", keys.rollout("r.0.0"), "o1.0", worker.worker)
    await connection.send("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    # When it goes on, then the mark is its own and the call runs
    assert await content(worker, call("pay")) == "paid"


async def test_a_tool_that_takes_too_long_is_a_timeout(worker, bank):
    with pytest.raises(CallError, match=r"bank\.queue took longer than 0\.1 s") as error:
        await worker.serve(call("queue"))
    assert error.value.fault.kind == "timeout"


async def test_tools_that_block_do_not_block_each_other_nor_the_loop(worker, bank):
    three = asyncio.gather(*[content(worker, call("meet")) for _ in range(3)])
    await asyncio.sleep(0.05)
    assert not three.done()
    assert await content(worker, call("meet")) == "met"
    assert await three == ["met"] * 3


async def test_a_tool_that_this_worker_does_not_have_is_the_environments_fault(worker, bank):
    with pytest.raises(CallError, match="has no tool 'fly' on this worker") as error:
        await worker.serve(call("fly"))
    assert error.value.fault.kind == "environment"


async def test_a_verifier_sees_the_conversation_and_then_it_is_forgotten(worker, connection, bank):
    one = call("", "verify", length=2, messages=[b'{"role":"user"}', b'{"role":"assistant"}'])
    assert msgspec.msgpack.decode(await worker.serve(one), type=Scored).reward == 2.0
    assert len(worker.conversations) == 0


async def test_a_worker_for_what_is_not_installed_does_not_start(settings):
    with pytest.raises(UnknownName, match="unknown environment 'casino'; installed: "):
        ResourceWorker(settings, {"environments": "weather,casino"})
