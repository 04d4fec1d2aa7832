"""Finished rollouts and groups, as consumers get them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec

from gymq.wire.token_branches import Branch, branches


def shard_of(rollout: str, shards: int) -> int:
    """The shard on which a rollout stands, with all of its group.

    Args:
        rollout: its id, `run.row.sample`.
        shards: how many shards there are.
    """
    return int(rollout.rsplit(".", 2)[1]) % shards


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

    @property
    def group(self) -> str:
        """The id of its group, `run.row`."""
        return self.id.rpartition(".")[0]

    @property
    def row(self) -> int:
        """The number of its task within the run."""
        return int(self.id.rsplit(".", 2)[1])

    @property
    def sample(self) -> int:
        """Its number within its group."""
        return int(self.id.rpartition(".")[2])

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
