"""Chat completions: requests joined from bytes, answers of many servers."""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
import pytest
from gymq_workers.model.openai.answer import InterruptedAnswer, MalformedAnswer, error_text
from gymq_workers.model.openai.chat_api import read_answer, request_body
from hypothesis import given
from hypothesis import strategies as st

from gymq.api.backend import Request
from gymq.wire.message import Conversation, Function, Message, ToolCall, decode_message, encode_message

texts = st.text(st.characters(exclude_categories=["Cs"]))
calls = st.builds(ToolCall, texts, st.builds(Function, texts, texts))
messages = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), texts | st.none(), texts | st.none(), st.lists(calls)
)
fields = st.dictionaries(
    texts.filter(lambda name: name not in ("model", "messages")), st.integers(-9, 9) | texts | st.lists(texts)
)


def answer(**choice) -> bytes:
    return json.dumps({"model": "m", "choices": [{"finish_reason": "stop", **choice}]}).encode()


@given(st.lists(messages, min_size=1, max_size=4), fields, st.sampled_from([None, 1]))
def test_a_joined_body_is_the_json_that_was_meant(conversation, given_fields, indent):
    body = json.dumps(given_fields, indent=indent).encode()
    request = Request("run.0.0", "e", Conversation([encode_message(message) for message in conversation]), body)
    sent = json.loads(request_body(b'{"model":"m",', request))
    for message in conversation:
        message.reasoning = None
    assert sent == {"model": "m", **given_fields, "messages": [msgspec.to_builtins(message) for message in conversation]}


def test_reasoning_is_not_sent_back():
    turns = [encode_message(Message("user", "a")), encode_message(Message("assistant", "b", "long thoughts"))]
    body = request_body(b'{"model":"m",', Request("r.0.0", "e", Conversation(turns), b'{"reasoning":{"effort":"low"}}'))
    assert b"thoughts" not in body
    assert json.loads(body)["reasoning"] == {"effort": "low"}


@pytest.mark.parametrize(
    ("said", "called", "finish"),
    [
        ("stop", False, "stop"),
        ("stop", True, "tool_calls"),
        ("tool_calls", True, "tool_calls"),
        ("length", True, "length"),
        ("content_filter", False, "content_filter"),
        ("eos_token", False, "stop"),
        (None, False, "stop"),
    ],
)
def test_finish_reasons(said, called, finish):
    tool_calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}] if called else None
    assert read_answer(answer(finish_reason=said, message={"tool_calls": tool_calls})).finish == finish


def test_a_tool_call_without_an_id_gets_one():
    call = {"function": {"name": "f", "arguments": None}}
    first, second = decode_message(read_answer(answer(message={"tool_calls": [call, call]})).message).tool_calls
    assert first.id.startswith("call_")
    assert first.id != second.id
    assert first.function.arguments == "{}"


def test_arguments_stay_as_the_model_wrote_them():
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1,}'}}
    assert decode_message(read_answer(answer(message={"tool_calls": [call]})).message).tool_calls[0].function.arguments == (
        '{"a": 1,}'
    )


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_has_two_names(field):
    assert decode_message(read_answer(answer(message={"content": "4", field: "2+2"})).message).reasoning == "2+2"


def test_nulls_are_absent():
    data = {"message": {"content": "x", "tool_calls": None, "refusal": None}, "logprobs": None, "token_ids": None}
    body = {"choices": [data], "usage": {"prompt_tokens": None, "prompt_tokens_details": None}, "model": None}
    assert read_answer(json.dumps(body).encode()).usage.input_tokens == 0


def test_token_ids_of_nemo_gym_stand_on_the_message():
    message = {"content": "x", "prompt_token_ids": [1, 2], "generation_token_ids": [3], "generation_log_probs": [-0.5]}
    found = read_answer(answer(message=message))
    assert (found.prompt, found.output, found.logprobs) == ([1, 2], [3], [-0.5])


def test_logprobs_may_come_without_token_ids():
    found = read_answer(answer(message={"content": "x"}, logprobs={"content": [{"token": "x", "logprob": -1}]}))
    assert (found.output, found.logprobs) == (None, [-1.0])


def test_an_answer_that_was_broken_off_is_none():
    with pytest.raises(InterruptedAnswer):
        read_answer(answer(finish_reason="abort", message={"content": "The capi"}))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "busy", "code": 429}, 429),
        ({"code": "502"}, 502),
        ({"code": "invalid_prompt"}, 400),
        ("no", 500),
        ({}, 500),
    ],
)
def test_an_error_in_an_answer_has_a_status(error, status):
    with pytest.raises(InterruptedAnswer) as caught:
        read_answer(json.dumps({"error": error}).encode())
    assert caught.value.status == status


def test_no_choices_is_nonsense():
    with pytest.raises(MalformedAnswer):
        read_answer(b"{}")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "tool_calls", "function", "error", "usage"]), inner
            )
        ),
    )
)
def test_any_json_is_an_answer_or_a_known_error(value):
    with suppress(msgspec.DecodeError, MalformedAnswer, InterruptedAnswer):
        read_answer(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error":{"message":"too\\nlong","code":"context_length_exceeded"}}', "too long; context_length_exceeded"),
        (b'{"object":"error","message":"bad","type":"BadRequestError","code":400}', "bad"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":["body"],"msg":"Field required","input":"maximum context length"}]}', "Field required"),
        (b"<html>\n 502 </html>", "<html> 502 </html>"),
        (b"\xff", "\ufffd"),
        (b'"\xff"', '"\ufffd"'),
        (b"[" * 100_000, "[" * 2000),
        (b"", ""),
    ],
)
def test_the_servers_own_words_are_found(body, words):
    assert error_text(body) == words


@given(st.binary())
def test_any_body_gives_one_line(body):
    assert "\n" not in error_text(body)
