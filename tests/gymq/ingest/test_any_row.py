"""Whatever stands in a row, it becomes a task or a data error, and nothing is lost."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from gymq.errors import DataError
from gymq.ingest.row_parser import parse_row
from gymq.wire.task import Task, decode_task, encode_task
from tests.support.tiers import examples

OURS = {"prompt", "messages", "tools", "sampling", "environment", "responses_create_params"}


def parse(row: Any, **more: Any) -> Task:
    data = row if isinstance(row, bytes) else json.dumps(row).encode()
    return parse_row(data, **{"where": "rows.jsonl:17", "environment": "weather", "known": {"weather", "counter"}, **more})


def turns(task: Task) -> list[Any]:
    return [json.loads(turn) for turn in task.encoded]


# --- whatever comes ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(
    [
        *("message", "function_call", "function_call_output", "reasoning", "user", "assistant", "tool", "text", "input_image"),
        *("function", "auto", "json_schema", "allowed_tools", "weather"),
    ]
)
NAMES = st.sampled_from(
    [
        *("type", "role", "content", "name", "call_id", "tool_call_id", "tool_calls", "arguments", "output", "summary", "text"),
        *("image_url", "function", "id", "url", "refusal", "reasoning"),
    ]
)
SHAPED = st.recursive(
    WORDS | JSON, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=20
)
PARAMS = st.dictionaries(
    st.sampled_from(
        [
            *("background", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model"),
            *("parallel_tool_calls", "previous_response_id", "prompt", "reasoning", "service_tier", "store", "temperature"),
            *("text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user", "stream", "other"),
        ]
    ),
    SHAPED,
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "prompt": SHAPED, "messages": SHAPED, "tools": SHAPED, "sampling": SHAPED, "environment": WORDS | JSON, "id": JSON,
        "responses_create_params": PARAMS | JSON, "agent_ref": JSON,
    },
)  # fmt: skip


def survive(row: Any) -> None:
    try:
        task = parse_row(row, where="w", environment="weather", known=["weather"])
    except DataError as error:
        assert str(error).startswith("w: ")
        assert str(error).isprintable()
        return
    # What was accepted can be read back wherever the task goes.
    assert isinstance(task.data, dict)
    assert isinstance(msgspec.json.decode(task.sampling), dict)
    assert all(message.role for message in task.messages)
    assert decode_task(encode_task(task)) == task


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_data_error(data: bytes):
    survive(data)


@given(JSON)
def test_no_json_raises_anything_but_a_data_error(value: Any):
    survive(json.dumps(value).encode())


@settings(max_examples=examples(400))
@given(ROWS)
def test_no_row_with_the_right_names_raises_anything_but_a_data_error(row: Any):
    survive(json.dumps(row).encode())
    survive(row)


@given(st.dictionaries(st.text().filter(lambda name: name not in OURS), JSON, max_size=6))
def test_every_other_field_comes_back_as_it_was(fields: dict):
    if isinstance(fields.get("id"), str):
        fields["id"] = "plain"
    assert parse({**fields, "prompt": "Hi"}).data == fields
    assert parse({**fields, "responses_create_params": {"input": "Hi"}}).data == fields


@settings(max_examples=examples(200))
@given(ROWS)
def test_what_was_accepted_means_the_same_when_it_is_parsed_again(row: Any):
    try:
        task = parse_row(row, where="w", environment="weather", known=["weather"])
    except DataError:
        return
    again = {"messages": turns(task), "sampling": json.loads(task.sampling), "environment": task.environment}
    if task.tools is not None:
        again["tools"] = json.loads(task.tools)
    second = parse(again)
    assert (second.encoded, second.sampling, second.tools) == (task.encoded, task.sampling, task.tools)


@given(st.text())
def test_every_prompt_comes_back_as_it_was(text: str):
    assert turns(parse({"prompt": text})) == [{"role": "user", "content": text}]
