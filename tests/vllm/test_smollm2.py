"""Conversations with a real model, SmolLM2, through `gymq run` and its workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gymq.wire.token_branches import branches
from tests.vllm.asking import Scorer

# The first test fetches the model, where that was not done before.
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]

#: Tasks of each environment with tools.
MANY = 4

#: Seconds that the run may take on a busy machine, its engine's start included.
LIMIT = 280

QUESTION = {"id": "france", "prompt": "What is the capital of France?", "sampling": {"temperature": 0}}

CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.S)


@pytest.fixture(scope="module")
def rollouts(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A question, and some tasks with tools."""
    folder = tmp_path_factory.mktemp("smollm2")
    told = (ROOT / "environments" / "demo.jsonl").read_text("utf-8").splitlines()
    rows = [QUESTION]
    for name in ("counter", "weather"):
        rows += [row for row in map(json.loads, told) if row["environment"] == name][:MANY]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["run", "weather", "--data", folder / "rows.jsonl", "--model", f"vllm:{smollm2}", "--gpu", "none"]
    argv += ["--engine", "dtype=float32", "--engine", "max_model_len=2048", "--tool-parser", "hermes"]
    argv += ["--temperature", "0.6", "--max-tokens", "60", "--max-turns", "6", "--out", folder / "out.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "gymq.cli", *map(str, argv)],
        env=dict(os.environ), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines()]
    assert len(found) == len(rows)
    return found


def test_a_real_model_answers_a_question(rollouts: list[dict[str, Any]]) -> None:
    (asked,) = [row for row in rollouts if row["task_id"] == "france"]
    assert asked["status"] == "completed"
    assert "Paris" in asked["messages"][-1]["content"]


def test_a_real_model_calls_tools_and_goes_on_from_their_results(rollouts: list[dict[str, Any]]) -> None:
    assert any(row["tool_calls"] > 0 and row["turns"] > 1 for row in rollouts)


def test_a_conversation_is_one_branch_whose_sampled_tokens_are_its_answers(
    rollouts: list[dict[str, Any]], smollm2: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for row in rollouts:
        (branch,) = branches(row)
        assert len(branch.answers) == row["turns"]
        sampled = 0
        for turn in branch.answers:
            assert all(branch.loss_mask[turn.start : turn.end])
            sampled += turn.end - turn.start
            ids = branch.token_ids[turn.start : turn.end].tolist()
            message = row["messages"][turn.message]
            assert message["role"] == "assistant"
            text = tokenizer.decode(ids, skip_special_tokens=True)
            if calls := message.get("tool_calls"):
                functions = [call["function"] for call in calls]
                read = [(each["name"], each.get("arguments", {})) for each in map(json.loads, CALL.findall(text))]
                assert [(each["name"], json.loads(each["arguments"])) for each in functions] == read
            else:
                assert message["content"] == text
        assert sum(branch.loss_mask) == sampled
        # What the template wrote and what was sampled is the conversation, to the last token.
        whole = tokenizer.decode(branch.token_ids.tolist())
        for message in row["messages"]:
            assert (message.get("content") or "") in whole


def test_logprobs_are_those_that_another_implementation_gives(rollouts: list[dict[str, Any]], smollm2: Path) -> None:
    scorer = Scorer(smollm2)
    worst = 0.0
    for row in rollouts:
        (branch,) = branches(row)
        ids = branch.token_ids.tolist()
        scored = [0.0, *scorer.score(ids[:1], ids[1:])]
        compared = zip(scored, branch.logprobs, branch.loss_mask, strict=True)
        worst = max(worst, *(abs(a - b) for a, b, sampled in compared if sampled))
    print(f"largest difference {worst:.2e}")
    assert worst <= 1e-3
