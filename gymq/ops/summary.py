"""The summary of a file of finished rollouts, read once from its beginning to its end."""

from __future__ import annotations

from collections import Counter
from math import comb
from pathlib import Path
from typing import get_args

import msgspec

from gymq.client.output import output_sink
from gymq.errors import DataError, FaultKind
from gymq.wire.calls import Usage
from gymq.wire.record import NO_VERIFIER, CallRecord, RecordedUsage, RolloutRecord, narrow

#: The reward from which on a rollout counts as a success.
SUCCESS = 1.0

#: The reason of a missing reward that is no fault: the verifier returned None, or a `Score` without a reward.
VERDICT = "the verifier gave none"

_Call = narrow(CallRecord, "kind", "name", "input_tokens", "output_tokens", "cached_tokens")
_Row = narrow(
    RolloutRecord,
    *("environment", "model", "group_id", "status", "reward", "no_reward", "turns", "usage", "error"),
    *("started_at", "finished_at"),
    calls=_Call,
)


class Summary(msgspec.Struct):
    """Numbers over some rollouts.

    Args:
        rollouts: how many ended.
        scored: how many have a reward; the others count in no mean and no pass@k.
        reward: the sum of the rewards.
        turns, input_tokens, output_tokens: sums.
        by_status: rollouts by status.
        failures: failed rollouts by the error's kind.
        first_error: what the first failed rollout says.
        unrewarded: rollouts that should have a reward and have none, by the kind of fault or `VERDICT`: they neither failed
            nor were cancelled, and their environment has a verifier.
        first_unrewarded: what the first of them says.
        groups: task -> scored rollouts, successes among them.
        fresh, first, last: of the rollouts that ended since the time given to `read`: how many, when the first began
            and the last ended.
    """

    rollouts: int = 0
    scored: int = 0
    reward: float = 0.0
    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    by_status: Counter[str] = msgspec.field(default_factory=Counter[str])
    failures: Counter[str] = msgspec.field(default_factory=Counter[str])
    first_error: str = ""
    unrewarded: Counter[str] = msgspec.field(default_factory=Counter[str])
    first_unrewarded: str = ""
    groups: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict[str, tuple[int, int]])
    fresh: int = 0
    first: float = float("inf")
    last: float = 0.0

    def add(self, row: RolloutRecord, since: float) -> None:
        """Count one rollout.

        Args:
            row: its record.
            since: seconds since the epoch; the rate counts rollouts that ended later.
        """
        self.rollouts += 1
        self.by_status[row.status] += 1
        self.turns += row.turns
        self.input_tokens += row.usage.input_tokens
        self.output_tokens += row.usage.output_tokens
        if row.error is not None and row.status == "failed":
            self.failures[row.error.kind] += 1
            self.first_error = self.first_error or row.error.message
        elif row.reward is None and row.status in ("completed", "truncated") and row.no_reward != NO_VERIFIER:
            reason = row.no_reward or VERDICT
            kind = reason.partition(": ")[0]
            self.unrewarded[kind if kind in get_args(FaultKind) else VERDICT] += 1
            self.first_unrewarded = self.first_unrewarded or reason
        if row.reward is not None:
            self.scored += 1
            self.reward += row.reward
            scored, successes = self.groups.get(row.group_id, (0, 0))
            self.groups[row.group_id] = (scored + 1, successes + (row.reward >= SUCCESS))
        if row.finished_at >= since:
            self.fresh += 1
            self.first = min(self.first, max(row.started_at, since))
            self.last = max(self.last, row.finished_at)

    @property
    def mean_reward(self) -> float | None:
        """The mean over the scored rollouts, None if there are none."""
        return self.reward / self.scored if self.scored else None

    @property
    def mean_turns(self) -> float:
        """Answers of the model per rollout."""
        return self.turns / self.rollouts if self.rollouts else 0.0

    @property
    def rate(self) -> float | None:
        """Rollouts per second from the first one's start to the last one's end, None if none ended since then."""
        return self.fresh / (self.last - self.first) if self.fresh and self.last > self.first else None

    def pass_at(self, k: int) -> float | None:
        """The chance that one of k samples of a task is a success: the unbiased estimate, over tasks with k scored samples.

        Args:
            k: how many samples.
        """
        chances = [1 - comb(n - c, k) / comb(n, k) for n, c in self.groups.values() if n >= k]
        return sum(chances) / len(chances) if chances else None


class Report(msgspec.Struct):
    """The summary of a file.

    Args:
        total: over all rollouts.
        environments: by environment, in the order of their names.
        models: the models' SPECs.
        tokens: by SPEC, those of judges too.
    """

    total: Summary
    environments: dict[str, Summary]
    models: set[str]
    tokens: dict[str, Usage]

    @property
    def scripted(self) -> bool:
        """Whether code played the model."""
        return any(model.partition(":")[0] == "scripted" for model in self.models)


def read(path: Path, since: float = 0.0) -> Report:
    """Read a file of finished rollouts.

    Args:
        path: the file.
        since: seconds since the epoch; the rate is of the rollouts that ended later.

    Raises:
        DataError: the file cannot be read, or a line is no finished rollout.
    """
    decoder = msgspec.json.Decoder(_Row)
    total, environments, models = Summary(), dict[str, Summary](), set[str]()
    tokens: dict[str, Usage] = {}
    if not path.exists():
        raise DataError(f"{path}: no such file; name one of finished rollouts")
    for number, record in enumerate(output_sink(path).records(_Row.__struct_fields__), 1):
        try:
            row = decoder.decode(record)
        except msgspec.DecodeError as error:
            raise DataError(f"{path}:{number}: is no finished rollout ({error})") from None
        models.add(row.model)
        _count(tokens, row.model, row.usage)
        for call in row.calls:
            if call.kind == "ask":
                _count(tokens, call.name or "", call)
        total.add(row, since)
        environments.setdefault(row.environment, Summary()).add(row, since)
    return Report(total, dict(sorted(environments.items())), models, tokens)


def _count(tokens: dict[str, Usage], spec: str, used: RecordedUsage | CallRecord) -> None:
    tokens.setdefault(spec, Usage()).add(Usage(used.input_tokens or 0, used.output_tokens or 0, used.cached_tokens))


def ks(samples: int) -> list[int]:
    """The k of pass@k that say something with so many samples: 1, 2, 4, ... and the number itself."""
    powers = [1 << i for i in range(samples.bit_length()) if 1 << i <= samples]
    return sorted({*powers, samples})
