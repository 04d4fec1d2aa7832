"""What actors keep of rollouts: within a budget, up to date, and only of the rollout that is meant."""

from __future__ import annotations

import pytest

from gymq.cache import byte_cache
from gymq.errors import CallError
from gymq.runtime.call_worker import CallWorker
from gymq.wire.calls import Call, RequestParameters, encode
from gymq.wire.task import Task, encode_task
from tests.support.shard import keys


class Server(CallWorker):
    """A server without a life of its own, for its reading."""

    role = "resource"

    def mailboxes(self):
        return ["resource:e"]


@pytest.fixture
async def server(settings):
    server = Server(settings, {})
    await server.connection.connect()
    yield server
    await server.connection.close()


def test_an_entry_beyond_the_whole_budget_is_kept_alone():
    cache = byte_cache(len, 30)
    cache["a"] = "x" * 10
    cache["b"] = "x" * 20
    cache["huge"] = "x" * 100
    assert (list(cache), cache.currsize) == (["huge"], 30)


def test_an_entry_that_is_put_again_weighs_what_it_weighs_now():
    cache = byte_cache(len, 100)
    cache["a"] = "x" * 60
    cache["a"] = "x" * 10
    assert cache.currsize == 10
    cache.pop("a", None)
    cache.pop("a", None)
    assert cache.currsize == 0


# Conversations, tasks and states that a server has read.


async def test_a_conversation_is_put_together_from_what_calls_bring_and_reads_only_the_rest(server, connection):
    # Given a server that serves the second call of a rollout without having seen the first
    messages = [b'"%d"' % n for n in range(6)]
    await connection.send("RPUSH", keys.messages("r.0.0"), *messages)
    await connection.send("HSET", keys.rollout("r.0.0"), "v", 3, "q", encode(RequestParameters(b"{}")))
    asked = Call("r.0.0", 2, 0, "generate", "r", "e", 0, 0.0, length=4, seen=2, messages=messages[2:4])
    # When it needs the conversation, then it loads all up to the call's length, and the plan
    kept = await server.conversation(asked, parameters=True)
    assert (kept.messages, kept.parameters) == (messages[:4], encode(RequestParameters(b"{}")))
    assert server.counts["loaded"] == 1
    # and the next call's news are added without loading
    kept = await server.conversation(Call("r.0.0", 3, 0, "generate", "r", "e", 0, 0.0, length=6, seen=4, messages=messages[4:]))
    assert kept.messages == messages
    # and a call that was handed back sees what there was when it was sent
    assert (await server.conversation(asked)).messages == messages[:4]
    assert server.counts["loaded"] == 1


async def test_news_that_overlap_what_is_kept_are_not_added_twice(server, connection):
    messages = [b'"%d"' % n for n in range(5)]
    await server.conversation(Call("r.0.0", 1, 0, "generate", "r", "e", 0, 0.0, length=3, messages=messages[:3]))
    kept = await server.conversation(Call("r.0.0", 2, 0, "generate", "r", "e", 0, 0.0, length=5, seen=1, messages=messages[1:]))
    assert kept.messages == messages
    assert server.counts["loaded"] == 0


async def test_news_that_are_too_large_to_travel_are_loaded(server, connection):
    messages = [b'"%d"' % n for n in range(4)]
    await server.conversation(Call("r.0.0", 1, 0, "generate", "r", "e", 0, 0.0, length=2, messages=messages[:2]))
    await connection.send("RPUSH", keys.messages("r.0.0"), *messages)
    assert (await server.conversation(Call("r.0.0", 2, 0, "generate", "r", "e", 0, 0.0, length=4, seen=2))).messages == messages


async def test_what_belongs_to_a_rollout_that_is_gone_cannot_be_read(server, connection):
    gone = Call("r.0.0", 1, 0, "tool", "r", "e", 0, 0.0, length=1)
    for read in (server.conversation(gone), server.task(gone)):
        with pytest.raises(CallError, match="has ended meanwhile") as error:
            await read
        assert error.value.fault.kind == "cancelled"


async def test_a_task_comes_with_the_call_or_from_the_ledger_and_is_read_once(server, connection):
    await connection.send(
        "HSET", keys.rows("r"), 0, encode_task(Task("stored", "e", [])), 1, encode_task(Task("other", "e", []))
    )
    brought = encode_task(Task("brought", "e", []))
    assert (await server.task(Call("r.1.0", 1, 0, "open", "r", "e", 1, 0.0, task=brought))).id == "brought"
    for sample in range(2):
        assert (await server.task(Call(f"r.0.{sample}", 1, 0, "tool", "r", "e", 0, 0.0))).id == "stored"
    assert server.counts["loaded"] == 1


async def test_a_state_that_is_too_large_to_travel_is_loaded(server, connection):
    await connection.send("HSET", keys.rollout("r.0.0"), "e", b"large")
    assert (
        await server.environment_state(Call("r.0.0", 1, 0, "tool", "r", "e", 0, 0.0, state=b"small", has_state=True))
        == b"small"
    )
    assert await server.environment_state(Call("r.0.0", 1, 0, "tool", "r", "e", 0, 0.0, has_state=True)) == b"large"
    assert await server.environment_state(Call("r.0.0", 1, 0, "tool", "r", "e", 0, 0.0)) is None


async def test_a_run_that_took_a_removed_ones_name_gets_its_own_tasks_and_messages(server, connection):
    # Given a server that has served a rollout of a run that was removed since
    old = Call("r.0.0", 1, 0, "verify", "r", "e", 0, 0.0, 1, 0, [b'"old"'], task=encode_task(Task("old", "e", [])), born=1.0)
    await server.conversation(old)
    await server.task(old)
    # When the rollout of the same name in a new run calls
    new = Call("r.0.0", 1, 0, "verify", "r", "e", 0, 0.0, 1, 0, [b'"new"'], task=encode_task(Task("new", "e", [])), born=2.0)
    # Then it is served with what is its own
    assert (await server.task(new)).id == "new"
    assert (await server.conversation(new)).messages == [b'"new"']
