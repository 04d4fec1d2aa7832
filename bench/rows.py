"""The rows that go in, and the check of every row that comes out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from gymq.wire.ids import RolloutId
from gymq.wire.record import CallRecord, RolloutRecord, narrow

_SYSTEM = "You are a helpful personal assistant that aims to be helpful and reduce any pain points the user has."
_SKIES = ("cold", "warm", "rainy", "sunny", "windy", "foggy", "cloudy", "snowy")
_TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": ""}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def rows(count: int, turns: int, environment: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Distinct tasks in NeMo Gym's format, as in its `example_single_tool_call`.

    Args:
        count: how many.
        turns: model calls of each.
        environment: `bench_turns` needs two fields more.
    """
    for i in range(count):
        opening = [
            {"role": "developer", "content": _SYSTEM},
            {"role": "user", "content": f"what's it like in city{i}?"},
        ]
        row: dict[str, Any] = {"responses_create_params": {"input": opening, "tools": [_TOOL]}}
        if environment == "bench_turns":
            row |= {"turns": turns, "city": f"city{i}"}
        yield f"bench:{i}", row


_Call = narrow(CallRecord, "kind", "queued", "started")
_Rollout = narrow(
    RolloutRecord,
    *("rollout_id", "run", "task_id", "status", "reward", "turns", "tool_calls", "error", "seq", "messages"),
    *("started_at", "finished_at"),
    calls=_Call,
)


class Checked(msgspec.Struct):
    """What the file of results says.

    Args:
        rollouts: rows; all of them right.
        started: when the first rollout began, seconds since the epoch.
        finished: when the last one ended.
        bytes: size of the file.
        queued: by kind of call, the milliseconds between sent and started: median, 99th percentile.
        lasted: milliseconds of a rollout: median, 99th percentile.
        middle_rate: rollouts per second between the first tenth and the last tenth to end.
    """

    rollouts: int
    started: float
    finished: float
    bytes: int
    queued: dict[str, tuple[float, float]]
    lasted: tuple[float, float]
    middle_rate: float


class WrongResult(Exception):
    """A row of the results is not what the task must give."""


def check(path: Path, run: str, count: int, turns: int) -> Checked:
    """Read the file back and look at every row.

    Raises:
        WrongResult: a row is missing, there twice, or wrong.
    """
    decode = msgspec.json.Decoder(_Rollout).decode
    seen: set[int] = set()
    seqs: set[int] = set()
    queued: dict[str, list[float]] = {}
    began: list[float] = []
    ended: list[float] = []
    with path.open("rb") as file:
        for line in file:
            rollout = decode(line)
            seen.add(_check_one(rollout, run, turns))
            seqs.add(rollout.seq)
            began.append(rollout.started_at)
            ended.append(rollout.finished_at)
            for call in rollout.calls:
                queued.setdefault(call.kind, []).append((call.started - call.queued) * 1000)
    if len(ended) != count or seen != set(range(count)):
        raise WrongResult(f"{path}: {len(ended)} rows of {len(seen)} tasks, not {count}")
    if seqs != set(range(1, count + 1)):
        raise WrongResult(f"{path}: the commit numbers are not 1 to {count}: a rollout was committed twice or not at all")
    lasted = [(end - start) * 1000 for start, end in zip(began, ended, strict=True)]
    ended.sort()
    first, last = ended[count // 10], ended[count - 1 - count // 10]
    return Checked(
        rollouts=count,
        started=min(began),
        finished=ended[-1],
        bytes=path.stat().st_size,
        queued={kind: (quantile(times, 0.5), quantile(times, 0.99)) for kind, times in sorted(queued.items())},
        lasted=(quantile(lasted, 0.5), quantile(lasted, 0.99)),
        middle_rate=(count - 2 * (count // 10)) / max(last - first, 1e-9),
    )


def _check_one(rollout: RolloutRecord, run: str, turns: int) -> int:
    """Look at one row; returns its task's number."""
    number = RolloutId.parse(rollout.rollout_id).row
    city = f"city{number}"
    result = f"The weather in {city} is {_SKIES[zlib.crc32(city.encode()) % len(_SKIES)]}."
    messages = rollout.messages
    calls = ["generate", "tool"] * (turns - 1) + ["generate", "verify"]
    roles = ["developer", "user"] + ["assistant", "tool"] * (turns - 1) + ["assistant"]
    for what, found, wanted in (
        ("run", rollout.run, run),
        ("error", rollout.error, None),
        ("status", rollout.status, "completed"),
        ("reward", rollout.reward, 1.0),
        ("turns", rollout.turns, turns),
        ("tool_calls", rollout.tool_calls, turns - 1),
        ("roles", [message.role for message in messages], roles),
        ("calls", [call.kind for call in rollout.calls], calls),
        ("question", messages[1].content, f"what's it like in {city}?"),
        ("tool results", {message.content for message in messages if message.role == "tool"}, {result}),
    ):
        if found != wanted:
            raise WrongResult(f"{rollout.rollout_id}: {what} is {found!r}, not {wanted!r}")
    if result not in (messages[-1].content or ""):
        raise WrongResult(f"{rollout.rollout_id}: the answer is {messages[-1].content!r}, without {result!r}")
    return number


def quantile(values: list[float], q: float) -> float:
    """A quantile of some values: the nearest one."""
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]
