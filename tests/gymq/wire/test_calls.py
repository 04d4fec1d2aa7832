"""Calls and replies: their encoding, and that each call is answered once, whoever answers and however often."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from gymq_workers.agent.state import NewerSchema, State, decode_state
from hypothesis import given
from hypothesis import strategies as st

from gymq.errors import Fault
from gymq.store import scripts
from gymq.store.runs import RunConfig
from gymq.wire.calls import (
    CALL,
    SCHEMA,
    Call,
    Reply,
    RequestParameters,
    ToolResult,
    Usage,
    call_schema,
    decode_call,
    decode_parameters,
    decode_reply,
    encode,
)  # fmt: skip
from gymq.wire.task import Task
from tests.support.rollouts import Pretender, address
from tests.support.shard import keys

RID = address("r.0.0")


async def send(connection, calls: int, step: int = 1) -> None:
    """A rollout whose step has sent so many calls."""
    if step == 1:
        run = Pretender(connection, RunConfig("r", "weather", "tool", "scripted"))
        await run.create()
        await run.enqueue(1)
        await run.admit()
    step = scripts.CommitStep(RID, step - 1, sends=[scripts.Send("resource:e", b"call")] * calls, due=1)
    assert await connection.run(scripts.commit([step])) == [scripts.CommitOutcome.APPLIED]


async def answer(connection, *replies, step: int = 1, mail=("", "")) -> list[bool]:
    return await connection.run(scripts.reply([scripts.ReplyEntry(RID, step, n, body, *mail) for n, body in replies]))


async def told(connection) -> list[list[bytes]]:
    """Return the fields of the mail to the agents, message by message."""
    return [fields for _, fields in await connection.send("XRANGE", keys.mailbox("agent"), "-", "+")]


async def test_the_reply_to_a_steps_only_call_is_sent_to_the_agents_at_once(connection):
    await send(connection, 1)
    assert await answer(connection, (0, b"pong")) == [1]
    assert await told(connection) == [[b"r", RID.encode(), b"v", b"1", b"y", b"pong"]]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("together", [True, False])
async def test_replies_of_a_step_come_in_one_mail_in_call_order_whatever_the_order_of_arrival(connection, order, together):
    # Given a step of three calls
    await send(connection, 3)
    # When they are answered in some order, in one batch or one by one
    replies = [(n, b"reply %d" % n) for n in order]
    if together:
        await answer(connection, *replies)
    else:
        for i, reply in enumerate(replies):
            assert await told(connection) == [], f"sent after {i} replies"
            await answer(connection, reply)
    # Then the agents get all at once, in the calls' order, and nothing waits any more
    assert await told(connection) == [[b"r", RID.encode(), b"v", b"1", b"y", b"reply 0", b"y", b"reply 1", b"y", b"reply 2"]]
    assert [f for f in await connection.send("HKEYS", keys.rollout(RID)) if f[:1] in b"cy"] == []


async def test_a_reply_that_is_sent_twice_counts_once(connection):
    await send(connection, 2)
    assert await answer(connection, (0, b"first")) == [1]
    assert await answer(connection, (0, b"first")) == [0]
    assert await told(connection) == []
    assert await answer(connection, (1, b"other"), (1, b"other"), (0, b"second")) == [1, 0, 0]
    assert [fields[5::2] for fields in await told(connection)] == [[b"first", b"other"]]


async def test_the_first_answer_counts_and_a_zombies_finds_nothing(connection):
    await send(connection, 1)
    assert await answer(connection, (0, b"judge")) == [1]
    assert await answer(connection, (0, b"zombie")) == [0]
    assert [fields[5] for fields in await told(connection)] == [b"judge"]


async def test_a_reply_to_an_earlier_step_finds_nothing(connection):
    await send(connection, 1)
    await answer(connection, (0, b"first"))
    await send(connection, 1, step=2)
    assert await answer(connection, (0, b"late"), step=1) == [0]
    assert len(await told(connection)) == 1
    assert await answer(connection, (0, b"second"), step=2) == [1]


async def test_a_wide_step_after_a_wide_step_waits_for_all_of_its_own(connection):
    # Given a step of two calls that were answered, and a second one of three
    await send(connection, 2)
    await answer(connection, (0, b"a"), (1, b"b"))
    await send(connection, 3, step=2)
    # When two of its calls are answered
    await answer(connection, (2, b"z"), (0, b"x"), step=2)
    # Then the agents wait for the third
    assert len(await told(connection)) == 1
    await answer(connection, (1, b"y"), step=2)
    assert (await told(connection))[1][5::2] == [b"x", b"y", b"z"]


async def test_a_reply_to_an_ended_rollout_brings_nothing_back(connection):
    # Given a rollout that was cancelled while it waited
    await send(connection, 2)
    await answer(connection, (0, b"early"))
    final = scripts.RolloutEnd("r", 0, 1, "cancelled", b"{")
    await connection.run(scripts.commit([scripts.CommitStep(RID, 1, final=final, must=True)]))
    # When the other call is answered
    assert await answer(connection, (1, b"late")) == [0]
    # Then nobody is told and no key is made
    assert await told(connection) == []
    assert await connection.send("EXISTS", keys.rollout(RID)) == 0


@pytest.mark.parametrize("known", [True, False])
async def test_a_reply_acknowledges_its_calls_mail_whether_it_counts_or_not(connection, known):
    # Given a call that a worker has taken
    await send(connection, 1)
    stream = keys.mailbox("resource:e")
    await connection.send("XGROUP CREATE", stream, keys.GROUP, "0")
    ((_, ((id_, _),)),) = await connection.send("XREADGROUP", "GROUP", keys.GROUP, "w", "STREAMS", stream, ">")
    if not known:
        await answer(connection, (0, b"somebody else's"))
    # When it answers
    assert await answer(connection, (0, b"mine"), mail=(stream, id_)) == [int(known)]
    # Then the mail is gone
    assert (await connection.send("XPENDING", stream, keys.GROUP))[0] == 0
    assert await connection.send("XLEN", stream) == 0


async def test_what_became_of_an_isolated_call_is_told_from_who_works_on_it(connection):
    # Given four calls: one answered, one that nobody has begun, one in a living executor, one in a dead one
    await send(connection, 4)
    await answer(connection, (0, b"done"))
    await connection.send("HSET", keys.prefix + "isolated", f"{RID}:1:2", "living", f"{RID}:1:3", "dead")
    await connection.send("SET", keys.alive("living"), 1)
    # When somebody looks, at them and at a call of a rollout that is gone
    calls = [scripts.CallKey(rid, 1, n) for rid, n in [*((RID, n) for n in range(4)), ("r.9.0", 0)]]
    states = await connection.run(scripts.isolated_states(calls))
    # Then each is told
    assert states == [0, 1, 2, 3, 0]
    # and when the rollout has gone on without them, that an executor works on one for nothing; a dead one is forgotten
    await connection.send("HSET", keys.rollout(RID), "v", 2)
    assert await connection.run(scripts.isolated_states(calls)) == [0, 0, 4, 0, 0]
    assert await connection.send("HKEYS", keys.isolated) == [f"{RID}:1:2".encode()]


async def test_a_call_is_wanted_while_it_is_pending_in_the_step_that_its_rollout_is_at(connection):
    await send(connection, 2)
    await answer(connection, (0, b"done"))
    calls = [scripts.CallKey(*key) for key in [(RID, 1, 0), (RID, 1, 1), (RID, 2, 0), ("r.9.0", 1, 0)]]
    assert await connection.run(scripts.pending_calls(calls)) == [False, True, False, False]
    await send(connection, 1, step=2)
    assert await connection.run(scripts.pending_calls(calls)) == [False, False, True, False]


# A rolling upgrade.


def make_next(known: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The next version of a struct: one field more, with a default."""
    return msgspec.defstruct("Next", [("later", str, "default")], bases=(known,), array_like=True)


@pytest.mark.parametrize(
    "old",
    [
        Call("r.0.0", 1, 0, "tool", "r", "e", 0, 1.5, born=2.5),
        Reply(0, 1.0, 2.0, "w", Fault("timeout", "late"), b"value", 1),
        RequestParameters(b'{"a":1}', b"[]", False),
        Task("t", "e", [b"{}"], b'{"a":1}', b"{}", b"[]"),
        State(phase="tools", tool_calls=3, shown=True),
    ],
    ids=lambda old: type(old).__name__,
)
def test_a_field_with_a_default_at_the_end_is_no_new_schema(old):
    following = make_next(type(old))
    # A new worker reads what an old one wrote, and the other way round
    read = msgspec.msgpack.decode(encode(old), type=following)
    assert read.later == "default"
    assert {name: getattr(read, name) for name in old.__struct_fields__} == msgspec.structs.asdict(old)
    new = following(**msgspec.structs.asdict(old), later="said")
    assert len(msgspec.msgpack.decode(encode(new))) == len(old.__struct_fields__) + 1
    assert msgspec.msgpack.decode(encode(new), type=type(old)) == old


def test_a_newer_call_and_a_newer_state_are_known_before_they_are_read():
    assert [call_schema(field) for field in (CALL.encode(), b"c", b"c2", b"c17")] == [SCHEMA, 1, 2, 17]
    for newer in (State(schema=SCHEMA + 1), [SCHEMA + 1, {"quite": "another"}]):
        with pytest.raises(NewerSchema) as caught:
            decode_state(msgspec.msgpack.encode(newer))
        assert caught.value.schema == SCHEMA + 1
    with pytest.raises(msgspec.MsgspecError):
        decode_state(msgspec.msgpack.encode([SCHEMA, {"broken": 1}]))


@given(
    rollout=st.text(min_size=1), messages=st.lists(st.binary()), state=st.none() | st.binary(), arguments=st.text(),
    task=st.none() | st.binary(), has_state=st.booleans(), length=st.integers(0, 1 << 40),
)  # fmt: skip
def test_a_call_comes_back_as_it_was_sent(rollout, messages, state, arguments, task, has_state, length):
    call = Call(rollout, 3, 1, "tool", "r", "e", 7, 1.5, length, 0, messages, "look", arguments, state, has_state, task)
    assert decode_call(encode(call)) == call
    assert call.id == f"{rollout}:3:1"


@given(st.text(), st.text(), st.binary(), st.integers(0, 99))
def test_a_reply_comes_back_as_it_was_sent(worker, message, value, attempt):
    reply = Reply(2, 1.0, 2.0, worker, Fault("timeout", message), value, attempt)
    assert decode_reply(encode(reply)) == reply


def test_a_reply_without_a_fault_has_none():
    reply = decode_reply(encode(Reply(0, 1.0, 2.0, "w", value=encode(ToolResult(b'"x"')))))
    assert (reply.fault, reply.attempt) == (None, 0)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (RequestParameters(b'{"seed":1}', b"[1]"), b'{"tools":[1],"seed":1}'),
        (RequestParameters(b"{}", b"[1]"), b'{"tools":[1]}'),
        (RequestParameters(b'{"seed":1}', b"[]"), b'{"seed":1}'),
        (RequestParameters(b'{"seed":1}', b"[1]", declare=False), b'{"seed":1}'),
    ],
    ids=["both", "tools", "sampling", "undeclared"],
)
def test_a_request_names_the_tools_only_where_there_are_some_to_declare(plan, expected):
    assert plan.request() == expected
    assert decode_parameters(encode(plan)) == plan


def test_usage_adds_up():
    usage = Usage(1, 2, 3, 4)
    usage.add(Usage(10, 20, 30, 40))
    assert usage == Usage(11, 22, 33, 44)
