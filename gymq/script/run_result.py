"""The result of a run: its file of finished rollouts, as a sequence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, overload
from uuid import uuid4

import msgspec

from gymq.client.output import output_kind, output_sink
from gymq.errors import GymqError
from gymq.ops import summary
from gymq.wire.ids import RolloutId
from gymq.wire.rollout import Group, Rollout

if TYPE_CHECKING:
    import pandas


class _Head(msgspec.Struct):
    """The first fields of a record."""

    rollout_id: str
    seq: int = 0


class RunResult(Sequence[Rollout]):
    """The finished rollouts of a run, by task and sample; each is read from the file when it is looked at.

    Args:
        out: the file.
        total: rollouts that the run has.
        bad: rows that were refused.
        stopped: True: the run was stopped before its end.
        folder: a temporary folder that holds the file; it lasts as long as this object.

    Attributes:
        out, total, bad, stopped: as above.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(
        self, out: Path, total: int, bad: int = 0, stopped: bool = False, folder: TemporaryDirectory[str] | None = None
    ) -> None:
        self.out = out
        self.total = total
        self.bad = bad
        self.stopped = stopped
        self._folder = folder
        self._lines = _lines(out)
        self._places = _places(self._lines)

    @cached_property
    def summary(self) -> summary.Summary:
        """The numbers over all rollouts: `by_status`, `failures`, `first_error`, `pass_at(k)` and more."""
        return summary.read(self.out).total if self._places else summary.Summary()

    @property
    def mean_reward(self) -> float | None:
        """The mean over the rollouts that have a reward; None: none has one."""
        return self.summary.mean_reward

    @property
    def groups(self) -> list[Group]:
        """The rollouts by task."""
        members: dict[str, list[Rollout]] = {}
        for rollout in self:
            members.setdefault(rollout.group, []).append(rollout)
        most = max(map(len, members.values()), default=0)
        return [Group(name, rollouts, complete=len(rollouts) == most) for name, rollouts in members.items()]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Rollout: ...

    @overload
    def __getitem__(self, index: slice) -> list[Rollout]: ...

    def __getitem__(self, index: int | slice) -> Rollout | list[Rollout]:
        places = self._places[index]
        if isinstance(places, list):
            return list(self._read(places))
        return next(self._read([places]))

    def __iter__(self) -> Iterator[Rollout]:
        return self._read(self._places)

    async def __aiter__(self) -> AsyncIterator[Rollout]:
        for rollout in self:
            yield rollout

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with a row for each rollout, and the columns of its record but for the calls; needs pandas.

        Fields of fields have columns of their own: `usage.output_tokens`, `task.id`, `error.kind`.

        Raises:
            GymqError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise GymqError("to_pandas needs pandas; install it: pip install pandas") from None
        records: list[dict[str, Any]] = []
        for rollout in self:
            record = {name: value for name, value in rollout.data.items() if name != "calls"}
            record["error"] = record["error"] or {"kind": None, "message": None}
            records.append(record)
        return pandas.json_normalize(records, max_level=1)

    def __repr__(self) -> str:
        parts = [f"{len(self)} of {self.total} rollouts"]
        if self.mean_reward is not None:
            parts.append(f"mean reward {self.mean_reward:.3f}")
        parts += [f"{count} {status}" for status, count in sorted(self.summary.by_status.items())]
        parts += [f"{self.bad} bad rows"] if self.bad else []
        return f"<RunResult: {', '.join(parts)}{', stopped' if self.stopped else ''}>"

    def _read(self, places: list[tuple[int, int, int, int]]) -> Iterator[Rollout]:
        if not places:
            return
        with self._lines.open("rb") as file:
            for *_, offset, length in places:
                file.seek(offset)
                line = file.read(length)
                head = msgspec.json.decode(line, type=_Head)
                yield Rollout(head.rollout_id, line, False, b"", head.seq)


def _lines(out: Path) -> Path:
    """Return the file itself, or one of the rows of Parquet parts as lines, which lasts as long as this process."""
    if output_kind(out) == "jsonl":
        return out
    lines = Path(_spool().name, f"{uuid4()}.jsonl")
    with lines.open("wb") as file:
        file.writelines(record + b"\n" for record in output_sink(out).records())
    return lines


@cache
def _spool() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="gymq-")


def _places(out: Path) -> list[tuple[int, int, int, int]]:
    """Return row, sample, offset and length of each record of a file, in order."""
    places: list[tuple[int, int, int, int]] = []
    if not out.exists():
        return places
    offset = 0
    with out.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                _, row, sample = RolloutId.parse(msgspec.json.decode(line, type=_Head).rollout_id)
                places.append((row, sample, offset, len(line) - 1))
            offset += len(line)
    return sorted(places)
