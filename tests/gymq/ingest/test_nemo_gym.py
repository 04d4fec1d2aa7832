"""NeMo Gym's rows: every item and every field of `responses_create_params` has its fate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.rows import CALL, CALLED, USER, items, nemo, reason, sampling, turns

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
    text = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text()
    fields = [
        *("background", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model"),
        *("parallel_tool_calls", "previous_response_id", "prompt", "reasoning", "service_tier", "store", "temperature"),
        *("text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user", "stream"),
    ]
    assert [field for field in fields if f"| `{field}" not in text] == []
