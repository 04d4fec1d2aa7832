"""What a rollout asks for: the tools and fields of a request, what travels in a call, and what is recorded of it."""

from __future__ import annotations

import json

import pytest
from gymq_workers.agent.tool_agent import ToolAgent

from gymq.store.admission import INLINE
from gymq.wire.calls import Tokens, decode_parameters
from gymq.wire.message import Message, encode_message
from tests.support.play import Play, only, opened, record, records, result, said, scored, spec

# What is asked of the model.


@pytest.mark.parametrize(
    ("row", "by_open", "declared"),
    [
        (None, None, ["look", "act"]),
        ([spec("act").schema], None, ["act"]),
        ([spec("act").schema], [spec("look").schema], ["look"]),
        ([], None, []),
    ],
    ids=["the environment's", "the row's", "those of open", "none"],
)
def test_the_tools_are_those_of_open_or_the_row_or_the_environment(row, by_open, declared):
    play = Play(ToolAgent(), tools=["look", "act"], hooks=("open",))
    play.live.task.tools = None if row is None else json.dumps(row).encode()
    play.go()
    call = only(play.go(opened(tools=by_open)))
    assert [tool["function"]["name"] for tool in json.loads(decode_parameters(call.parameters).tools)] == declared


def test_a_rows_sampling_comes_before_the_runs():
    play = Play(ToolAgent(), config={"sampling": {"temperature": 1, "seed": 3}}, sampling=b'{"temperature":0}')
    assert json.loads(decode_parameters(only(play.go()).parameters).body) == {"temperature": 0, "seed": 3}


@pytest.mark.parametrize("tools", [[], ["look"]])
def test_fields_that_belong_to_tools_are_dropped_where_there_are_none(tools):
    play = Play(ToolAgent(), tools=tools, sampling=b'{"tool_choice":"auto","parallel_tool_calls":true,"seed":1}')
    body = json.loads(decode_parameters(only(play.go()).parameters).body)
    assert set(body) == ({"tool_choice", "parallel_tool_calls", "seed"} if tools else {"seed"})


# What travels in a call.


@pytest.mark.parametrize(("size", "travels"), [(INLINE // 2, True), (INLINE, False)])
def test_what_is_small_travels_and_what_is_large_is_loaded(size, travels):
    turn = encode_message(Message("user", "x" * size))
    play = Play(ToolAgent(), hooks=("open", "verify"), encoded=[turn])
    assert (only(play.go()).task is not None) == travels
    call = only(play.go(opened("s" * size)))
    assert (call.messages, call.seen, call.length) == ([turn] if travels else [], 0, 1)
    call = only(play.go(said()))
    assert (call.kind, call.has_state, call.state is not None, bool(call.messages)) == ("verify", True, travels, travels)


def test_a_model_is_sent_only_what_is_new_and_the_plan_once():
    play = Play(ToolAgent(), tools=["look"])
    first = only(play.go())
    play.go(said(None, "look"))
    second = only(play.go(result("seen")))
    assert (first.seen, first.length, len(first.messages)) == (0, 1, 1)
    assert (second.seen, second.length, len(second.messages)) == (1, 3, 2)
    assert decode_parameters(first.parameters) and second.parameters is None


def test_a_plan_that_is_too_large_is_loaded():
    play = Play(ToolAgent(), sampling=b'{"stop":"%s"}' % (b"x" * INLINE))
    assert only(play.go()).parameters is None
    assert len(play.live.parameters) > INLINE


# Records.


def test_every_record_is_json_and_tells_what_the_call_was():
    play = Play(ToolAgent(), tools=["look"], fields=b'{"answer":"\xc3\xa4"}')
    play.go()
    tokens = Tokens(3, b"\x01\0\0\0", b"\x02\0\0\0", b"\0\0\0\0", [(0, 7)])
    one, two = play.go(said(None, "look", finish="tool_calls", tokens=tokens)), play.go(result("seen"))
    generate, tool = records(one, two)
    assert (generate["finish"], generate["input_tokens"], generate["output_tokens"]) == ("tool_calls", 5, 3)
    assert generate["tokens"] == {
        "prompt_start": 3, "prompt": "AQAAAA==", "output": "AgAAAA==", "logprobs": "AAAAAA==", "versions": [[0, 7]],
    }  # fmt: skip
    assert generate["message"] == 1 and "message" not in tool
    assert (tool["name"], tool["worker"], tool["started"], tool["finished"]) == ("look", "w", 10.0, 11.0)
    assert "fault" not in tool and "tokens" not in tool
    play.go(said())
    header = record(play.go(scored()))
    assert header["task"] == {"answer": "ä"}
    assert (header["rollout_id"], header["group_id"], header["sample"], header["task_id"]) == ("r.7.1", "r.7", 1, "t")
    assert (header["model"], header["model_name"], header["agent"], header["environment"]) == (
        "model", "served", "tool", "world",
    )  # fmt: skip


def test_a_record_says_how_often_its_call_was_delivered():
    play = Play(ToolAgent())
    play.go()
    answer = said()
    answer.attempt = 2
    assert records(play.go(answer))[0]["attempt"] == 2
