"""Rows of NeMo Gym's own environments are accepted as they are. They are read where they lie and are not ours to copy."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gymq.ingest.row_parser import parse_row
from gymq.wire.task import Task

DATA = Path(__file__).parents[3] / "shared" / "conformance" / "nemo_gym"

#: The environments whose rows this test was written against.
SETS = (
    *("calendar", "circle_count", "citation_if", "equivalence_rule", "example_multi_step", "example_multi_turn_gymnasium"),
    *("example_session_state_mgmt", "example_single_tool_call", "format_verification", "hotpotqa_qa", "lc_niah", "mcqa"),
    *("string_match", "xlam_fc"),
)

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"skips {len(SETS)} sets of NeMo Gym rows: ../shared/conformance is not here"),
]


def load(name: str) -> list[tuple[dict[str, Any], Task]]:
    path = DATA / name / "example.jsonl"
    if not path.exists():
        pytest.skip(f"skips 1 of {len(SETS)} sets: {path.name} of {name} is not here")
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    return [
        (json.loads(line), parse_row(line, where=f"{name}:{number}", environment=name, known={name}))
        for number, line in enumerate(lines, 1)
    ]


def turns(task: Task) -> list[Any]:
    return [json.loads(turn) for turn in task.encoded]


def test_the_sets_are_those_we_know():
    found = {path.parent.name for path in DATA.glob("*/example.jsonl")}
    assert found <= set(SETS), "there are new sets; add them"


@pytest.mark.parametrize("name", SETS)
def test_every_row_is_accepted_and_keeps_its_fields(name: str):
    rows = load(name)
    assert rows
    for row, task in rows:
        params = row["responses_create_params"]
        assert task.data == {field: value for field, value in row.items() if field != "responses_create_params"}
        assert task.id == str(row.get("id", ""))
        assert (task.tools is None) == (params.get("tools") is None)
        for tool, given in zip(json.loads(task.tools or b"[]"), params.get("tools") or [], strict=True):
            assert tool == {"type": "function", "function": {field: given[field] for field in given if field != "type"}}


@pytest.mark.parametrize("name", SETS)
def test_no_word_of_the_conversation_is_lost(name: str):
    for row, task in load(name):
        said = [
            item["content"] if isinstance(item["content"], str) else "".join(part.get("text", "") for part in item["content"])
            for item in row["responses_create_params"]["input"]
            if "content" in item
        ]
        assert [message.text for message in task.messages if message.role != "tool" and message.content is not None] == said


def test_images_of_circle_count_become_image_urls():
    for row, task in load("circle_count"):
        (image,) = [part for part in row["responses_create_params"]["input"][-1]["content"] if part["type"] == "input_image"]
        parts = task.messages.last.content
        assert isinstance(parts, list)
        (sent,) = [part for part in parts if part["type"] == "image_url"]
        assert sent["image_url"] == {"url": image["image_url"], "detail": image["detail"]}


def test_calls_of_earlier_turns_stand_before_their_answers():
    seen = 0
    for name in SETS:
        for row, task in load(name):
            given = [item for item in row["responses_create_params"]["input"] if item.get("type") == "function_call"]
            messages = turns(task)
            made = [call for message in messages for call in message.get("tool_calls", ())]
            assert [call["id"] for call in made] == [item["call_id"] for item in given]
            assert [call["function"]["arguments"] for call in made] == [item["arguments"] for item in given]
            for before, message in pairwise(messages):
                if message["role"] == "tool":
                    seen += 1
                    assert before["role"] == "tool" or message["tool_call_id"] in {call["id"] for call in before["tool_calls"]}
    assert seen


def test_sampling_of_hotpotqa_is_in_chat_completions_terms():
    for row, task in load("hotpotqa_qa"):
        params = row["responses_create_params"]
        assert json.loads(task.sampling) == {"temperature": params["temperature"], "top_p": params["top_p"]}
        assert task.tools == b"[]"
