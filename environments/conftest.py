"""Fixtures of the environments' tests: their rows as tasks, NeMo Gym's recorded rollouts, rollouts in one process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gymq import plugins
from gymq.api.environment import Environment
from gymq.ingest.chat_items import Item, to_messages
from gymq.ingest.row_parser import parse_row
from gymq.wire.message import Conversation, Message, encode_message
from gymq.wire.record import RolloutRecord
from gymq.wire.task import Task

ENVIRONMENTS = Path(__file__).parent
RECORDED = ENVIRONMENTS.parents[1] / "shared" / "conformance" / "nemo_gym"

#: Rollouts in each of NeMo Gym's `example_rollouts.jsonl`.
RECORDED_COUNT = 5


class Recorded(msgspec.Struct):
    """One of NeMo Gym's recorded rollouts: its task, its conversation, the calls' recorded results, its reward."""

    task: Task
    messages: Conversation
    results: list[str]
    reward: float


def _lines(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line]


def _task(name: str, row: dict[str, Any]) -> Task:
    return parse_row(row, where=name, environment=name, known={name})


def _messages(items: list[dict[str, Any]]) -> list[Message]:
    return to_messages(msgspec.convert(items, list[Item]), "output")


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """Make a task of the user's words and a row's fields."""

    def make(text: str = "?", **fields: Any) -> Task:
        return _task("test", {"id": "task", "prompt": text, **fields})

    return make


@pytest.fixture
def tasks() -> Callable[[str], list[Task]]:
    """Read an environment's own rows."""

    def read(name: str) -> list[Task]:
        return [_task(name, row) for row in _lines(ENVIRONMENTS / name / "data" / "train.jsonl")]

    return read


@pytest.fixture
def recorded() -> Callable[[str], list[Recorded]]:
    """Read NeMo Gym's recorded rollouts of a server; the test is skipped where they are absent."""

    def read(name: str) -> list[Recorded]:
        folder = RECORDED / name
        if not folder.is_dir():
            pytest.skip(f"{RECORDED_COUNT} recorded rollouts of NeMo Gym's {name} are not at hand")
        # The files are in different orders and the rollouts lack the rows' fields: the prompt's text joins them.
        rows = {_prompt(row): row for row in _lines(folder / "example.jsonl")}
        rollouts = []
        for rollout in _lines(folder / "example_rollouts.jsonl"):
            task = _task(name, rows[_prompt(rollout)])
            output = rollout["response"]["output"]
            encoded = [encode_message(message) for message in _messages(output)]
            results = [item["output"] for item in output if item["type"] == "function_call_output"]
            rollouts.append(Recorded(task, Conversation(task.encoded + encoded), results, rollout["reward"]))
        assert len(rollouts) == RECORDED_COUNT
        return rollouts

    return read


def _prompt(row: dict[str, Any]) -> str:
    return "\n".join(item["content"] for item in row["responses_create_params"]["input"])


@pytest.fixture
def play() -> Callable[[Environment, Task], Awaitable[RolloutRecord]]:
    """Play a rollout with the environment's own policy, and return its record."""

    async def play(environment: Environment, task: Task) -> RolloutRecord:
        player = plugins.load(plugins.PLAYERS, "inline")
        return (await player(type(environment)).play(task)).record

    return play
