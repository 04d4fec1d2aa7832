"""Responses: chat messages and fields translated, output items read."""

from __future__ import annotations

import json

import pytest
from gymq_workers.model.openai.answer import InterruptedAnswer, MalformedAnswer
from gymq_workers.model.openai.responses_api import input_items, read_answer, request_body, request_fields

from gymq.api.backend import Request
from gymq.wire.message import Conversation, Function, Message, ToolCall, decode_message, encode_message


def response(*output, **fields) -> bytes:
    return json.dumps({"status": "completed", "output": list(output), **fields}).encode()


def said(text: str) -> dict:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def test_each_kind_of_message_becomes_items():
    call = ToolCall("c1", Function("add", '{"a":1}'))
    assert input_items(Message("system", "Be brief.")) == [{"type": "message", "role": "system", "content": "Be brief."}]
    assert input_items(Message("assistant", None, "thoughts", [call])) == [
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}'}
    ]
    assert [item["type"] for item in input_items(Message("assistant", "Wait.", None, [call, call]))] == [
        "message",
        "function_call",
        "function_call",
    ]
    assert input_items(Message("assistant")) == [{"type": "message", "role": "assistant", "content": ""}]
    assert input_items(Message("tool", "2", tool_call_id="c1", name="add")) == [
        {"type": "function_call_output", "call_id": "c1", "output": "2"}
    ]


def test_content_parts_get_their_other_names():
    parts = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:x"}}, {"type": "input_audio"}]
    assert input_items(Message("user", parts))[0]["content"] == [
        {"type": "input_text", "text": "Look"},
        {"type": "input_image", "image_url": "data:x", "detail": "auto"},
        {"type": "input_audio"},
    ]
    assert input_items(Message("assistant", [{"type": "text", "text": "Yes"}]))[0]["content"] == [
        {"type": "output_text", "text": "Yes"}
    ]
    assert input_items(Message("tool", [{"type": "text", "text": "2"}], tool_call_id="c"))[0]["output"] == [
        {"type": "input_text", "text": "2"}
    ]


def test_fields_get_their_other_names():
    schema = {"name": "n", "schema": {}, "strict": True}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    chat = {
        "max_tokens": 5,
        "temperature": 0,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": schema},
        "verbosity": "low",
        "tools": [tool, {"type": "web_search"}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "logprobs": True,
        "top_logprobs": 2,
    }
    assert request_fields(chat) == {
        "store": False,
        "max_output_tokens": 5,
        "temperature": 0,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", **schema}, "verbosity": "low"},
        "tools": [{"type": "function", "strict": False, "name": "f", "parameters": {}}, {"type": "web_search"}],
        "tool_choice": {"type": "function", "name": "f"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }


def test_fields_that_are_already_of_responses_stay():
    chat = {
        "reasoning": {"summary": "auto"},
        "reasoning_effort": "high",
        "store": True,
        "logprobs": False,
        "tool_choice": "auto",
    }
    assert request_fields(chat) == {
        "reasoning": {"effort": "high", "summary": "auto"},
        "store": True,
        "tool_choice": "auto",
    }
    assert request_fields({"response_format": {"type": "json_object"}})["text"] == {"format": {"type": "json_object"}}


def test_a_body_is_complete():
    turns = [encode_message(Message("user", "Hi"))]
    body = json.loads(request_body(b'{"model":"m",', Request("r.0.0", "e", Conversation(turns), b'{"max_tokens":3}')))
    hi = {"type": "message", "role": "user", "content": "Hi"}
    assert body == {"model": "m", "store": False, "max_output_tokens": 3, "input": [hi]}


def test_items_become_one_message():
    reasoning = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "One."}], "content": None}
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"}
    found = read_answer(response(reasoning, said("Let me look."), call, {"type": "web_search_call", "id": "x"}))
    assert decode_message(found.message) == Message("assistant", "Let me look.", "One.", [ToolCall("c1", Function("f", "{}"))])
    assert found.finish == "tool_calls"


def test_an_empty_output_is_an_empty_answer():
    assert decode_message(read_answer(response()).message) == Message("assistant", "")


@pytest.mark.parametrize(("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "content_filter")])
def test_incomplete_answers_say_why(reason, finish):
    found = read_answer(response(said("The capi"), status="incomplete", incomplete_details={"reason": reason}))
    assert found.finish == finish


def test_usage_has_its_details():
    usage = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 3}
    found = read_answer(response(said("x"), usage={**usage, "output_tokens_details": {"reasoning_tokens": 2}})).usage
    assert (found.input_tokens, found.output_tokens, found.cached_tokens, found.reasoning_tokens) == (9, 3, 4, 2)


def test_token_ids_of_nemo_gym_stand_on_the_last_item():
    ids = {"prompt_token_ids": [1, 2], "generation_token_ids": [3], "generation_log_probs": [-0.5]}
    found = read_answer(response({"type": "reasoning", "summary": []}, {**said("x"), **ids}))
    assert (found.prompt, found.output, found.logprobs) == ([1, 2], [3], [-0.5])


def test_logprobs_are_read_from_the_text():
    part = {"type": "output_text", "text": "ab", "logprobs": [{"token": "a", "logprob": -1}, {"token": "b", "logprob": -2}]}
    found = read_answer(response({"type": "message", "content": [part]}))
    assert (found.output, found.logprobs) == (None, [-1.0, -2.0])


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"status": "failed", "error": {"code": "server_error", "message": "it failed"}}, 500),
        ({"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "slow down"}}, 429),
        ({"status": "failed", "error": {"code": "invalid_image", "message": "no image"}}, 400),
        ({"status": "cancelled"}, 500),
    ],
)
def test_a_failed_response_has_a_status(fields, status):
    with pytest.raises(InterruptedAnswer) as caught:
        read_answer(response(**fields))
    assert caught.value.status == status


def test_no_output_is_nonsense():
    with pytest.raises(MalformedAnswer):
        read_answer(b"{}")
