"""Fixtures of the environments' tests: their rows as tasks, NeMo Gym's recorded rollouts, rollouts in one process."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gymq.api.environment import Environment, Opening, Response, Score
from gymq.api.tools import wanted
from gymq.ingest.chat_items import Item, to_messages
from gymq.ingest.row_parser import parse_row
from gymq.wire.message import Conversation, Message, encode_message
from gymq.wire.task import Task

ENVIRONMENTS = Path(__file__).parent
RECORDED = ENVIRONMENTS.parents[1] / "shared" / "conformance" / "nemo_gym"

#: Rollouts in each of NeMo Gym's `example_rollouts.jsonl`.
RECORDED_COUNT = 5

#: Turns after which a rollout without an end fails its test.
MAX_TURNS = 30


class Recorded(msgspec.Struct):
    """One of NeMo Gym's recorded rollouts: its task, its conversation, the calls' recorded results, its reward."""

    task: Task
    messages: Conversation
    results: list[str]
    reward: float


class Played(msgspec.Struct):
    """A rollout played in this process."""

    messages: Conversation
    score: Score


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
def play() -> Callable[[Environment, Task], Awaitable[Played]]:
    """Play a rollout with the environment's own policy; its state is encoded between calls, as in workers."""
    return _play


async def _play(environment: Any, task: Task) -> Played:
    conversation = Conversation(list(task.encoded))
    encoded = b""

    async def call(function: Callable[..., Any], arguments: dict[str, Any] | None = None, keep: bool = True) -> Any:
        nonlocal encoded
        state = msgspec.msgpack.decode(encoded, type=environment.State) if encoded else None
        injected = {"task": task, "messages": conversation, "state": state}
        value = function(**{name: injected[name] for name in wanted(function)}, **(arguments or {}))
        value = await value if inspect.isawaitable(value) else value
        if state is not None and keep:
            encoded = msgspec.msgpack.encode(state)
        return value

    def say(*messages: Message) -> None:
        conversation.encoded.extend(encode_message(message) for message in messages)

    spec = environment.spec()
    if spec.open.present:
        opening: Opening = await call(environment.open)
        encoded = msgspec.msgpack.encode(opening.state)
        say(*opening.messages)
    for _ in range(MAX_TURNS):
        message: Message = await call(environment.policy)
        say(message)
        for made in message.tool_calls:
            tool = environment.tools[made.function.name]
            arguments = tool.arguments(made.function.arguments)
            content = await call(getattr(environment, tool.name), arguments, keep=not tool.flags["read_only"])
            say(Message(role="tool", content=content, tool_call_id=made.id, name=tool.name))
        if message.tool_calls:
            continue
        if not spec.respond.present:
            break
        response = await call(environment.respond)
        if isinstance(response, str):
            response = Response(messages=[Message(role="user", content=response)])
        say(*response.messages)
        if response.done:
            break
    else:
        pytest.fail(f"the rollout had not ended after {MAX_TURNS} turns")
    score = await call(environment.verify)
    return Played(conversation, score if isinstance(score, Score) else Score(reward=score))
