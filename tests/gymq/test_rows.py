"""Rows become tasks, or one line that says what is wrong with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gymq.errors import DataError
from gymq.items import MAX_DEPTH
from gymq.prompt import PromptConfig
from gymq.rows import parse_row
from gymq.task import Task, decode_task, encode_task

OURS = {"prompt", "messages", "tools", "sampling", "environment", "responses_create_params"}


def parse(row: Any, **more: Any) -> Task:
    data = row if isinstance(row, bytes) else json.dumps(row).encode()
    return parse_row(data, **{"where": "rows.jsonl:17", "environment": "weather", "known": {"weather", "counter"}, **more})


def nemo(**params: Any) -> Task:
    return parse({"responses_create_params": {"input": "Hi", **params}})


def turns(task: Task) -> list[Any]:
    return [json.loads(turn) for turn in task.turns]


def sampling(task: Task) -> Any:
    return json.loads(task.sampling)


def items(*given: Any) -> list[Any]:
    return turns(nemo(input=list(given)))


def reason(row: Any, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        parse(row, **more)
    line = str(caught.value)
    assert line.startswith("rows.jsonl:17: ")
    assert "\n" not in line
    assert line.isprintable()
    return line.removeprefix("rows.jsonl:17: ")


USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a": 1}'}
CALLED = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}


# --- simple rows ---


def test_a_prompt_is_one_user_message():
    task = parse({"prompt": "Hi"})
    assert task.environment == "weather"
    assert task.turns == [b'{"role":"user","content":"Hi"}']
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


# --- NeMo Gym's rows: items ---


def test_an_input_of_text_is_a_user_message_and_instructions_stand_before_it():
    assert turns(nemo(instructions="Be brief.")) == [{"role": "system", "content": "Be brief."}, USER]


def test_calls_in_a_row_join_into_one_assistant_message_and_outputs_answer_them():
    second = {**CALL, "call_id": "c2", "name": "count"}
    got = items(
        USER,
        CALL,
        second,
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "8"}]},
    )
    assert [message["role"] for message in got] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in got[1]["tool_calls"]] == ["c1", "c2"]
    assert "content" not in got[1]
    assert got[2] == {"role": "tool", "content": "7", "tool_call_id": "c1", "name": "look"}
    assert got[3] == {"role": "tool", "content": "8", "tool_call_id": "c2", "name": "count"}


def test_an_assistant_message_directly_before_a_call_joins_it():
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me look."}]}
    assert items(USER, said, CALL)[1:] == [{"role": "assistant", "content": "Let me look.", "tool_calls": [CALLED]}]


def test_what_the_model_said_behind_an_unanswered_call_joins_its_message():
    got = items(
        USER, CALL, {"role": "assistant", "content": "Looking."}, {**CALL, "type": "function_call_output", "output": "7"}
    )
    assert [message["role"] for message in got] == ["user", "assistant", "tool"]
    assert got[1] == {"role": "assistant", "content": "Looking.", "tool_calls": [CALLED]}


def test_two_assistant_messages_stay_two():
    assert len(items(USER, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"})) == 3


def test_reasoning_belongs_to_the_assistant_message_behind_it():
    thought = {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "hm"}]}
    written = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]}
    assert items(USER, thought, written, {"role": "assistant", "content": "Hi"})[1] == {
        "role": "assistant",
        "content": "Hi",
        "reasoning": "hm\nso",
    }
    assert items(USER, thought, CALL)[1]["reasoning"] == "hm"


def test_reasoning_between_two_calls_of_a_turn_does_not_part_them():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    got = items(USER, thought, CALL, thought, {**CALL, "call_id": "c2"})
    assert len(got) == 2
    assert got[1]["reasoning"] == "hm\nhm"
    assert len(got[1]["tool_calls"]) == 2


def test_reasoning_that_nothing_followed_is_a_turn_of_its_own():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    alone = {"role": "assistant", "content": "", "reasoning": "hm"}
    assert items(USER, thought) == [USER, alone]
    assert items(USER, thought, USER) == [USER, alone, USER]


def test_a_refusal_is_what_the_assistant_said():
    said = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert items(said) == [{"role": "assistant", "content": "No."}]


@pytest.mark.parametrize(
    "kind", ["web_search_call", "mcp_call", "item_reference", "code_interpreter_call", "computer_call_output"]
)
def test_items_of_hosted_tools_are_refused_by_name(kind: str):
    said = reason({"responses_create_params": {"input": [USER, {"type": kind, "id": "x", "output": {"a": 1}}]}})
    assert said.startswith(f"responses_create_params.input[1] is a '{kind}' item")


# --- NeMo Gym's rows: every other field of responses_create_params ---


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 1}, {"temperature": 1}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"max_output_tokens": 5}, {"max_tokens": 5}),
        ({"top_logprobs": 0}, {"logprobs": True, "top_logprobs": 0}),
        ({"user": "u"}, {"user": "u"}),
        ({"store": False}, {"store": False}),
        ({"service_tier": "flex"}, {"service_tier": "flex"}),
        ({"seed": 3}, {"seed": 3}),
        ({"metadata": {"a": "b"}}, {"metadata": {"a": "b"}}),
        ({"metadata": {"extra_body": '{"seed": 3, "top_k": 5}', "a": "b"}}, {"seed": 3, "top_k": 5, "metadata": {"a": "b"}}),
        ({"metadata": {"extra_body": '{"temperature": 0}'}, "temperature": 1.0}, {"temperature": 1.0}),
        (
            {"metadata": {"chat_template_kwargs": '{"enable_thinking": false}'}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"parallel_tool_calls": True}, {}),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"parallel_tool_calls": False, "tools": []}, {}),
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tool_choice": "none", "tools": []}, {}),
        (
            {"tool_choice": {"type": "function", "name": "look"}},
            {"tool_choice": {"type": "function", "function": {"name": "look"}}},
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]}},
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "look"}}]},
                }
            },
        ),
        ({"background": False, "stream": False, "previous_response_id": None, "prompt": None}, {}),
    ],
)
def test_a_sampling_field_passes_under_its_name_in_chat_completions(given: dict, expected: dict):
    task = nemo(**given)
    assert sampling(task) == expected
    assert task.data == {}


@pytest.mark.parametrize(
    "given",
    [
        {"model": "m"},
        {"include": ["reasoning.encrypted_content"]},
        {"max_tool_calls": 3},
        {"truncation": "auto"},
        {"reasoning": {"summary": "auto"}},
        {"something_new": [1]},
    ],
)
def test_what_is_not_for_the_model_is_kept_in_the_tasks_fields(given: dict):
    task = nemo(**given)
    assert task.data == {"responses_create_params": given}
    assert sampling(task) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"previous_response_id": "r"}, "previous_response_id points at"),
        ({"prompt": {"id": "p"}}, "prompt points at"),
        ({"conversation": "c"}, "conversation points at"),
        ({"background": True}, "background cannot be true"),
        ({"stream": True}, "stream cannot be true"),
        ({"tools": [{"type": "web_search"}]}, "tools[0] is a 'web_search' tool"),
        ({"tools": [{"type": "function"}]}, "tools[0] has no name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice cannot be asked"),
        ({"tool_choice": "maybe"}, "tool_choice cannot be asked"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type is 'grammar'"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format has no name"),
        ({"metadata": {"extra_body": "{"}}, "metadata.extra_body is not the text of a JSON object"),
        ({"metadata": {"extra_body": '{"model": "x"}'}}, "metadata.extra_body.model is not for a row"),
        ({"metadata": {"extra_body": '{"a": ' + "[" * 300 + "]" * 300 + "}"}}, "metadata.extra_body is nested more than"),
        ({"metadata": {"audio_path": "a.wav"}}, "metadata.audio_path is not read"),
        ({"temperature": "hot"}, "temperature: Expected float | null, got str"),
        ({"max_output_tokens": True}, "max_output_tokens: Expected int | null, got bool"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"tools": {"a": 1}}, "tools: Expected array | null, got object"),
        ({"instructions": ["a"]}, "instructions: Expected str | null, got array"),
    ],
)
def test_what_cannot_be_done_is_refused(given: dict, said: str):
    line = reason({"responses_create_params": {"input": "Hi", **given}})
    assert line.startswith(f"responses_create_params.{said}")
    assert "; " in line


def test_the_documentation_tells_the_fate_of_every_field():
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    fields = [
        *("background", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model"),
        *("parallel_tool_calls", "previous_response_id", "prompt", "reasoning", "service_tier", "store", "temperature"),
        *("text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user", "stream"),
    ]
    assert [field for field in fields if f"| `{field}" not in text] == []


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


@settings(max_examples=400)
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


@given(st.text())
def test_every_prompt_comes_back_as_it_was(text: str):
    assert turns(parse({"prompt": text})) == [{"role": "user", "content": text}]
