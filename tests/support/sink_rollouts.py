"""Finished rollouts for sinks, as they come out of a run's results."""

from __future__ import annotations

from typing import Any

import msgspec

from gymq.client.sink_loop import Sink
from gymq.wire.rollout import Rollout
from tests.support.rollouts import finished


def rollout(number: int, run: str = "r", **fields: Any) -> Rollout:
    """The rollout `<run>.<number>.0`; `fields` replace those of its record."""
    rid = f"{run}.{number}.0"
    return Rollout(rid, msgspec.json.encode(finished(rid, seq=number + 1, **fields)), True, f"1000-{number}".encode())


def rollouts(count: int, start: int = 0) -> list[Rollout]:
    """So many rollouts of run `r`."""
    return [rollout(number) for number in range(start, start + count)]


def fresh(sink: Sink, made: list[Rollout]) -> list[Rollout]:
    """Those that the sink does not have: what its consumer gives it."""
    return [one for one in made if sink.seen.add(one.id)]
