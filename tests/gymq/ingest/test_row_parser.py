"""Rows become tasks, or one line that says what is wrong with them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from gymq.errors import DataError
from gymq.ingest.chat_items import MAX_DEPTH
from gymq.ingest.prompt_template import PromptConfig
from gymq.ingest.row_parser import parse_row
from gymq.wire.task import decode_task, encode_task
from tests.support.rows import CALLED, USER, items, nemo, parse, reason, sampling, turns

OURS = {"prompt", "messages", "tools", "sampling", "environment", "responses_create_params"}

# --- simple rows ---


def test_a_prompt_is_one_user_message():
    task = parse({"prompt": "Hi"})
    assert task.environment == "weather"
    assert task.encoded == [b'{"role":"user","content":"Hi"}']
    assert (task.id, task.fields, task.sampling, task.tools) == ("", b"{}", b"{}", None)


def test_a_prompt_may_hold_messages_as_trainers_write_it():
    assert turns(parse({"prompt": [USER]})) == [USER]


def test_messages_of_chat_completions_stay_as_they_are():
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "reasoning": "hm", "tool_calls": [CALLED]},
        {"role": "tool", "content": "7", "tool_call_id": "c1", "name": "look"},
        {"role": "assistant", "content": "Seven."},
    ]
    assert turns(parse({"messages": messages})) == messages


def test_a_null_counts_as_absent_since_arrow_fills_rows_with_nulls():
    message = {"role": "user", "content": "Hi", "tool_calls": None, "tool_call_id": None, "name": None, "type": None}
    assert turns(parse({"messages": [message], "prompt": None, "tools": None, "environment": None, "sampling": None})) == [USER]


def test_images_pass_in_both_spellings():
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
    ]
    (message,) = turns(parse({"messages": [{"role": "user", "content": parts}]}))
    assert message["content"] == [
        *parts[:2],
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
    ]


@pytest.mark.parametrize(
    ("part", "sent"),
    [
        ({"type": "video_url", "video_url": {"url": "u"}}, {"type": "video_url", "video_url": {"url": "u"}}),
        ({"type": "input_video", "video_url": "u"}, {"type": "video_url", "video_url": {"url": "u"}}),
        ({"type": "audio_url", "audio_url": "u"}, {"type": "audio_url", "audio_url": {"url": "u"}}),
        (
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        ),
        ({"type": "file", "file": {"file_id": "f"}}, {"type": "file", "file": {"file_id": "f"}}),
        (
            {"type": "input_file", "file_data": "AA==", "filename": "a.pdf"},
            {"type": "file", "file": {"file_data": "AA==", "filename": "a.pdf"}},
        ),
    ],
)
def test_sounds_videos_and_files_pass(part: dict, sent: dict):
    (message,) = turns(parse({"messages": [{"role": "user", "content": [part]}]}))
    assert message["content"] == [sent]


def test_a_single_text_part_becomes_plain_text():
    assert items({"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}) == [USER]


def test_a_row_names_its_environment():
    assert parse({"prompt": "Hi", "environment": "counter"}).environment == "counter"
    assert "environment" not in parse({"prompt": "Hi", "environment": "counter"}).data


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("a-1", "a-1"),
        (7, "7"),
        (0, "0"),
        (None, ""),
        (True, ""),
        (1.5, ""),
        ([1], ""),
        ({"a": 1}, ""),
        (10**30, "1" + "0" * 30),
    ],
)
def test_an_id_is_text_or_a_whole_number(id: Any, expected: str):
    task = parse({"prompt": "Hi", "id": id})
    assert task.id == expected
    assert task.data["id"] == id


def test_other_fields_are_kept_as_they_are():
    other = {
        "answer": 7, "big": 10**40, "deep": [[{"a": None}]], "agent_ref": {"name": "x"}, "_ng_task_index": 3,
        "id": 4, "uuid": "u", "text": "日本 😀 \u0000", "": 1,
    }  # fmt: skip
    task = parse({"prompt": "Hi", **other})
    assert task.data == other
    assert task["answer"] == 7


def test_a_rows_sampling_passes_under_its_own_names():
    assert sampling(parse({"prompt": "Hi", "sampling": {"temperature": 0.5, "top_k": 20, "seed": None}})) == {
        "temperature": 0.5,
        "top_k": 20,
    }


def test_tools_absent_or_null_are_the_environments_and_a_list_is_exactly_these():
    flat = {"type": "function", "name": "look", "description": None, "parameters": {"type": "object"}, "strict": True}
    chat = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}, "strict": True}}
    assert parse({"prompt": "Hi"}).tools is None
    assert parse({"prompt": "Hi", "tools": None}).tools is None
    assert parse({"prompt": "Hi", "tools": []}).tools == b"[]"
    assert json.loads(parse({"prompt": "Hi", "tools": [chat]}).tools or b"") == [chat]
    assert json.loads(parse({"prompt": "Hi", "tools": [flat]}).tools or b"") == [chat]
    assert nemo().tools is None
    assert nemo(tools=[]).tools == b"[]"
    assert json.loads(nemo(tools=[flat]).tools or b"") == [chat]


def test_a_dict_is_a_row_too():
    task = parse_row({"prompt": "Hi", "answer": (1, math.nan)}, where="w", environment="weather", known=["weather"])
    assert task.data == {"answer": [1, None]}


def test_a_task_survives_the_ledger():
    task = parse({"prompt": "Hi", "answer": 7, "tools": []})
    assert decode_task(encode_task(task)) == task


def test_a_byte_order_mark_and_blanks_are_no_harm():
    assert turns(parse(b'\xef\xbb\xbf  {"prompt": "Hi"} \r')) == [USER]


def test_of_a_repeated_key_the_last_counts():
    task = parse(b'{"prompt": "No", "prompt": "Hi", "a": 1, "a": {"b": 1, "b": 2}}')
    assert turns(task) == [USER]
    assert task.fields == b'{"a":{"b":2}}'


def test_fields_are_one_line_whatever_the_row_looked_like():
    assert parse(b'{"prompt": "Hi",\n "a": [1,\n 2]}').fields == b'{"a":[1,2]}'


# --- bad rows ---


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": 1}, "has neither prompt nor messages"),
        ({"responses_create_params": {}}, "responses_create_params has no input"),
        ({"responses_create_params": 3}, "responses_create_params: Expected object, got int"),
        ({"prompt": "a", "messages": []}, "has both prompt and messages"),
        ({"prompt": 3}, "prompt: Expected str | array, got int"),
        ({"messages": {"role": "user"}}, "messages: Expected str | array, got object"),
        ({"messages": [3]}, "messages[0]: Expected object, got int"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: Expected str | array | null, got int"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ({"messages": [{"content": "a"}]}, "messages[0] has neither a role nor a type"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "messages[0].role is 'boss'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages[0].content[0] is a 'hologram' part"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url holds no URL"),
        ({"messages": [{"type": "function_call", "name": "a"}]}, "messages[0].call_id is missing"),
        ({"prompt": "a", "environment": "nope"}, "unknown environment 'nope'; use one that is installed: counter, weather"),
        ({"prompt": "a", "environment": 3}, "environment: Expected str, got int"),
        ({"prompt": "a", "sampling": {"messages": []}}, "sampling.messages is not for a row to set"),
        ({"prompt": "a", "sampling": {"n": 2}}, "sampling.n must be 1"),
        ({"prompt": "a", "sampling": [1]}, "sampling: Expected object | null, got array"),
        ({"prompt": "a", "id": "x" * 300}, "id "),
        ({"prompt": "a", "id": "a\nb"}, "id 'a\\nb' is longer"),
        ([1], "is not a JSON object"),
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"prompt": "a"} x', "is not JSON"),
        (b'{"prompt": "a", "x": NaN}', "holds NaN, which is not JSON; write null"),
        (b'{"prompt": "a", "x": -Infinity}', "holds -Infinity, which is not JSON; write null"),
        (b'{"prompt": "a", "x": 1e999}', "holds a number that is too large"),
        (b'{"prompt": "a", "x": ' + b"1" * 5000 + b"}", "holds a number that is too large"),
        (b'{"prompt": "\\ud800"}', "holds half of a surrogate pair"),
        (b'{"prompt": "a\x01b"}', "is not JSON (Invalid control character"),
        (b'{"prompt": "a\xff"}', "is not UTF-8 (byte 14)"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
        (b'{"prompt": "a", "x": ' + b"[" * 300 + b"]" * 300 + b"}", f"is nested more than {MAX_DEPTH} levels"),
    ],
)
def test_a_bad_row_is_one_line_that_says_where_and_what(row: Any, said: str):
    assert reason(row).startswith(said)


def test_a_long_row_is_not_quoted_at_length():
    assert len(reason({"messages": [{"role": "x" * 10_000, "content": "a"}]})) < 300


def test_an_unknown_default_environment_is_an_error_too():
    assert reason({"prompt": "a"}, environment="gone").startswith("unknown environment 'gone'")


def test_many_brackets_that_are_not_deep_are_fine():
    assert parse({"prompt": "a", "x": [[] for _ in range(5000)]}).data["x"][0] == []


@pytest.mark.parametrize(
    "value", [object(), "\ud800", {(1, 2): 3}, 10**5000], ids=["object", "surrogate", "key", "huge number"]
)
def test_a_dict_that_no_json_can_hold_is_a_bad_row(value: Any):
    with pytest.raises(DataError, match=r"^w: "):
        parse_row({"prompt": "a", "x": value}, where="w", environment="weather", known=["weather"])


def test_a_dict_that_holds_itself_is_a_bad_row():
    row: dict[str, Any] = {"prompt": "a"}
    row["x"] = row
    with pytest.raises(DataError, match="nested too deeply"):
        parse_row(row, where="w", environment="weather", known=["weather"])


# --- a prompt file ---


def test_a_prompt_file_words_rows_that_have_none():
    prompt = PromptConfig(user="Q: {question}", system="Be {how}.")
    task = parse({"question": "1+1?", "how": "brief", "answer": 2}, prompt=prompt)
    assert turns(task) == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q: 1+1?"}]
    assert task.data == {"question": "1+1?", "how": "brief", "answer": 2}


def test_a_prompt_file_fills_the_input_of_a_nemo_row_and_keeps_the_rest():
    row = {"responses_create_params": {"temperature": 0.5, "tools": []}, "question": "1+1?"}
    task = parse(row, prompt=PromptConfig(user="{question}"))
    assert turns(task) == [{"role": "user", "content": "1+1?"}]
    assert (sampling(task), task.tools) == ({"temperature": 0.5}, b"[]")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "q": 1}, "has prompt of its own"),
        ({"messages": [], "q": 1}, "has messages of its own"),
        ({"responses_create_params": {"input": "a"}, "q": 1}, "has responses_create_params.input of its own"),
        ({"p": 1}, "has no field 'q'"),
        ({"q": None}, "has no field 'q'"),
    ],
)
def test_a_prompt_file_does_not_fit_a_row_that_has_a_prompt_or_lacks_a_field(row: dict, said: str):
    assert reason(row, prompt=PromptConfig(user="{q}")).startswith(said)
