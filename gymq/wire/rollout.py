"""Finished rollouts and groups, as consumers get them."""

from __future__ import annotations

from functools import cached_property

import msgspec

from gymq.wire.ids import RolloutId
from gymq.wire.json_types import JsonObject
from gymq.wire.record import RolloutRecord, narrow
from gymq.wire.token_branches import Branch, branches

#: The names in each entry of a run's results: rollout, whether it is its group's last, commit number, record.
ENTRY_FIELDS = [b"r", b"l", b"n", b"b"]

#: Digits of a commit number; more are a forgery.
MAX_SEQ_DIGITS = 9

_decoder = msgspec.json.Decoder(RolloutRecord)
_outcome_decoder = msgspec.json.Decoder(narrow(RolloutRecord, "status", "reward", "versions"))


def rollout_of_entry(fields: list[bytes], run: str) -> RolloutId | None:
    """Return the id of the finished rollout in an entry of a run's results; None if the entry is forged.

    Args:
        fields: the entry's names and values in turn.
        run: the run's name.
    """
    if len(fields) != 8 or fields[::2] != ENTRY_FIELDS or not fields[5].isdigit() or len(fields[5]) > MAX_SEQ_DIGITS:
        return None
    rollout, record = RolloutId.check(fields[1]), fields[7]
    whole = record.startswith(b'{"rollout_id":"%b",' % fields[1]) and record.endswith(b"}") and b"\n" not in record
    return rollout if rollout is not None and rollout.run == run and whole else None


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
    def data(self) -> JsonObject:
        """The record, decoded as JSON; `docs/rollouts.md` tells its fields."""
        return msgspec.json.decode(self.json)

    @cached_property
    def record(self) -> RolloutRecord:
        """The record, decoded into its struct."""
        return _decoder.decode(self.json)

    @cached_property
    def _outcome(self) -> RolloutRecord:
        # Most of a record's bytes are messages and token ids: passing over them costs half of decoding them.
        return _outcome_decoder.decode(self.json)

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
        return self._outcome.reward

    @property
    def status(self) -> str:
        """`completed`, `truncated`, `failed` or `cancelled`."""
        return self._outcome.status

    @property
    def versions(self) -> tuple[int, int] | None:
        """The oldest and the newest policy version that its tokens were sampled with, or None where they are unknown."""
        return self._outcome.versions

    @property
    def messages(self) -> list[JsonObject]:
        """The conversation."""
        return self.data["messages"]

    @cached_property
    def branches(self) -> list[Branch]:
        """Its token ids, with masks, logprobs and policy versions, as trainers want them; see `docs/rollouts.md`."""
        return branches(self.record)


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
