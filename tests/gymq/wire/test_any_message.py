# ruff: noqa: E501
"""Whatever stands in a message, a call, a reply or a state, it comes back as it was; whatever bytes come, the error is known."""

from __future__ import annotations

import pytest
from gymq_workers.agent.state import NewerSchema, Running, State, decode_state, encode_state
from hypothesis import given
from hypothesis import strategies as st

from gymq.api.agent import CallTool
from gymq.errors import UNREADABLE, Fault
from gymq.wire.calls import Call, Reply, RequestParameters, Usage, decode_call, decode_parameters, decode_reply, encode
from gymq.wire.message import Function, Message, ToolCall, decode_message, encode_message, without_reasoning
from gymq.wire.task import Task, decode_task, encode_task

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.text(max_size=8)}, optional={"text": st.text(), "image_url": JSON}), max_size=4
)
CALLS = st.lists(st.builds(ToolCall, st.text(), st.builds(Function, st.text(), st.text())), max_size=3)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | st.text(),
    content=st.none() | st.text() | PARTS,
    reasoning=st.none() | st.text(),
    tool_calls=CALLS,
    tool_call_id=st.none() | st.text(),
    name=st.none() | st.text(),
)
COUNT = st.integers(0, 2**63 - 1)
TIME = st.floats(allow_nan=False, allow_infinity=False)
BLOB = st.none() | st.binary(max_size=40)
SENT = st.builds(
    Call, st.text(), COUNT, COUNT, st.sampled_from(["generate", "open", "tool", "respond", "verify", "close"]),
    st.text(), st.text(), COUNT, TIME, COUNT, COUNT, st.lists(st.binary(max_size=40), max_size=3), st.text(), st.text(),
    BLOB, st.booleans(), BLOB, BLOB, TIME,
)  # fmt: skip
REPLIES = st.builds(Reply, COUNT, TIME, TIME, st.text(), st.none() | st.builds(Fault, st.text(), st.text()), st.binary(), COUNT)
TOOL = st.builds(CallTool, name=st.text(), arguments=st.text(), id=st.text())
STATES = st.builds(
    State, phase=st.text(), length=COUNT, usage=st.builds(Usage, COUNT, COUNT, COUNT, COUNT), todo=st.lists(TOOL, max_size=3),
    running=st.lists(st.builds(Running, TOOL, BLOB), max_size=3), fault=st.none() | st.builds(Fault, st.text(), st.text()),
)  # fmt: skip
TASKS = st.builds(Task, st.text(), st.text(), st.lists(st.binary(max_size=40), max_size=3), st.binary(), st.binary(), BLOB)


@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message: Message):
    data = encode_message(message)
    assert b"\n" not in data
    assert decode_message(data) == message
    assert encode_message(decode_message(data)) == data
    bare = decode_message(without_reasoning(data))
    message.reasoning = None
    assert bare == message


@given(SENT)
def test_a_call_comes_back_as_it_was(call: Call):
    assert decode_call(encode(call)) == call


@given(REPLIES)
def test_a_reply_comes_back_as_it_was(reply: Reply):
    assert decode_reply(encode(reply)) == reply


@given(st.builds(RequestParameters, st.binary(), st.binary(), st.booleans()))
def test_a_plan_comes_back_as_it_was(plan: RequestParameters):
    assert decode_parameters(encode(plan)) == plan


@given(STATES)
def test_a_state_comes_back_as_it_was(state: State):
    assert decode_state(encode_state(state)) == state


@given(TASKS)
def test_a_task_comes_back_as_it_was(task: Task):
    assert decode_task(encode_task(task)) == task


@pytest.mark.parametrize("decode", [decode_call, decode_reply, decode_parameters, decode_state, decode_task, decode_message])
@given(
    data=st.binary(max_size=200)
    | st.integers(0, 3000).map(lambda depth: b"\x91" * depth)
    | st.integers(0, 3000).map(lambda d: b"[" * d)
)
def test_bytes_are_a_value_or_unreadable(decode, data: bytes):
    try:
        decode(data)
    except (*UNREADABLE, NewerSchema):
        return
