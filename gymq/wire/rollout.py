"""Finished rollouts and groups, as consumers get them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec

from gymq.wire.ids import RolloutId
from gymq.wire.token_branches import Branch, branches


class Rollout(msgspec.Struct, dict=True):
    """One finished rollout.

    Args:
        id: its id, `run.row.sample`.
        json: the whole record, one JSON object.
        last: True: it was the last member of its group to end.
        entry: where it lies in the run's results; acknowledging needs it.
        seq: its commit number: how many rollouts of the run had ended with it.
    """

    id: str
    json: bytes
    last: bool
    entry: bytes
    seq: int = 0

    @cached_property
    def data(self) -> dict[str, Any]:
        """The record, decoded; `docs/rollouts.md` tells its fields."""
        return msgspec.json.decode(self.json)

    @cached_property
    def place(self) -> RolloutId:
        """Its run, row and sample."""
        return RolloutId.parse(self.id)

    @property
    def group(self) -> str:
        """The id of its group, `run.row`."""
        return self.place.group

    @property
    def row(self) -> int:
        """The index of its task within the run."""
        return self.place.row

    @property
    def sample(self) -> int:
        """Its index within its group."""
        return self.place.sample

    @property
    def reward(self) -> float | None:
        """The reward, or None when no verifier gave one."""
        return self.data["reward"]

    @property
    def status(self) -> str:
        """`completed`, `truncated`, `failed` or `cancelled`."""
        return self.data["status"]

    @property
    def versions(self) -> tuple[int, int] | None:
        """The oldest and the newest policy version that its tokens were sampled with, or None where nobody said."""
        found = self.data.get("versions")
        return None if found is None else (found[0], found[1])

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation."""
        return self.data["messages"]

    @cached_property
    def branches(self) -> list[Branch]:
        """Its token ids, with masks, logprobs and policy versions, as trainers want them; see `docs/rollouts.md`."""
        return branches(self.data)


class Group(msgspec.Struct):
    """All samples of a task.

    Args:
        id: `run.row`.
        rollouts: its members, by sample.
        complete: False: members are missing: the run was cancelled before they began, they were trimmed before this
            consumer was declared, or a sink had them from an earlier life of the run.
    """

    id: str
    rollouts: list[Rollout]
    complete: bool = True

    @property
    def rewards(self) -> list[float | None]:
        """The members' rewards, by sample."""
        return [rollout.reward for rollout in self.rollouts]
