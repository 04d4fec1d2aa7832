"""The tasks of `make demo`, and a real model's recorded answers to them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gymq_environments import demo

from gymq.wire.token_branches import branches

FOLDER = Path(demo.__file__).parent


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def recorded():
    """The recordings by their tasks."""
    return {row["task_id"]: row for file in FOLDER.glob("*/data/smollm2.jsonl") for row in read(file)}


def test_the_tasks_are_what_their_script_makes():
    assert read(FOLDER / "demo.jsonl") == [row for name in demo.TASKS for row in demo.rows(name)]


def test_each_task_has_a_prompt_of_its_own_and_a_recording_with_a_reward(recorded):
    rows = read(FOLDER / "demo.jsonl")
    assert len(rows) == len({json.dumps(row["messages"]) for row in rows}) == len(recorded) == 200
    for row in rows:
        rollout = recorded[row["id"]]
        assert rollout["environment"] == row["environment"]
        assert rollout["model_name"] == "vllm:SmolLM2-135M-Instruct"
        assert rollout["reward"] is not None
        assert [message["content"] for message in rollout["messages"][: len(row["messages"])]] == [
            message["content"] for message in row["messages"]
        ]


def test_a_recording_holds_the_ids_and_logprobs_of_each_answer(recorded):
    for rollout in recorded.values():
        assert sum(len(branch.answers) for branch in branches(rollout)) == rollout["turns"]
        assert all(logprob <= 0 for branch in branches(rollout) for logprob in branch.logprobs)


@pytest.mark.slow
def test_the_recordings_are_replayed_to_the_last_token_and_rewarded_as_they_were(recorded, tmp_path):
    argv = ["run", "weather", "--data", FOLDER / "demo.jsonl", "--model", f"replay:{FOLDER}/*/data/smollm2.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "gymq.cli", *map(str, argv), "--out", tmp_path / "out.jsonl"],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    replayed = read(tmp_path / "out.jsonl")
    assert len(replayed) == len(recorded)
    told = ("status", "stop", "reward", "metrics", "turns", "tool_calls", "model_name", "messages")
    for row in replayed:
        before = recorded[row["task_id"]]
        assert {name: row[name] for name in told} == {name: before[name] for name in told}
        assert [lists(branch) for branch in branches(row)] == [lists(branch) for branch in branches(before)]


def lists(branch):
    return [branch.token_ids.tolist(), branch.loss_mask.tolist(), branch.logprobs.tolist(), branch.versions.tolist()]
