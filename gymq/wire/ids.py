"""Ids of rollouts and calls: the one place that builds and splits them."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

#: Digits of a row and of a sample: consumers keep a bit for each rollout, and a forged number must not fill their memory.
MAX_ROW_DIGITS, MAX_SAMPLE_DIGITS = 9, 6

#: A run's name, which becomes part of Redis keys and ids.
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"

_PART = re.compile(rf"([0-9]{{1,{MAX_ROW_DIGITS}}})(?:\.([0-9]{{1,{MAX_SAMPLE_DIGITS}}}))?")
_ROLLOUT = re.compile(rf"({RUN_NAME})\.([0-9]{{1,{MAX_ROW_DIGITS}}})\.([0-9]{{1,{MAX_SAMPLE_DIGITS}}})")
_ADDRESS = re.compile(_ROLLOUT.pattern.encode() + b"~[0-9a-f]{1,20}")


class RolloutId(NamedTuple):
    """A rollout's place in its run; as text, `run.row.sample`.

    Args:
        run: the run's name.
        row: the index of its task in the run's ledger.
        sample: its index within its group.
    """

    run: str
    row: int
    sample: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split the id of a rollout that gymq has made.

        Raises:
            ValueError: it has fewer than three parts, or the last two are no integers.
        """
        run, row, sample = text.rsplit(".", 2)
        return cls(run, int(row), int(sample))

    @classmethod
    def check(cls, text: str | bytes) -> Self | None:
        """Split an id that may be forged; None if it breaks a rule of ids, a length among them."""
        if isinstance(text, bytes):
            text = text.decode("ascii", "replace")
        match = _ROLLOUT.fullmatch(text)
        return match and cls(match[1], int(match[2]), int(match[3]))

    def __str__(self) -> str:
        return f"{self.run}.{self.row}.{self.sample}"

    @property
    def group(self) -> str:
        """The id of its group, `run.row`: all samples of its task."""
        return f"{self.run}.{self.row}"

    def shard(self, shards: int) -> int:
        """Return the index of the shard that holds its row, and so all of its group.

        Args:
            shards: how many shards there are.
        """
        return self.row % shards


class RolloutAddress(NamedTuple):
    """The address of a rollout in Redis: its place, and its run's incarnation; as text, `run.row.sample~incarnation`.

    A run may take the name of one that was removed. Keys, mail, calls, replies and due times bear this address, so that
    none that is left of the old run can reach the new one.

    Args:
        id: its place.
        incarnation: that of its run.
    """

    id: RolloutId
    incarnation: str

    @staticmethod
    def is_one(text: bytes) -> bool:
        """Return whether a text that may be forged keeps the rules of addresses, their lengths among them."""
        return _ADDRESS.fullmatch(text) is not None

    def __str__(self) -> str:
        return f"{self.id}~{self.incarnation}"


def place(address: str) -> str:
    """Return what people call a rollout or call, without its run's incarnation.

    Args:
        address: the text of a rollout's address, or of a call's id.
    """
    rollout, _, rest = address.partition("~")
    return rollout + rest[len(rest.partition(":")[0]) :]


class PartId(NamedTuple):
    """A part of a run, a group or a rollout; as text `row` or `row.sample`.

    Args:
        row: the index of the task.
        sample: the rollout's index within its group; None: the whole group.
    """

    row: int
    sample: int | None = None

    @classmethod
    def check(cls, text: str, run: str = "") -> Self | None:
        """Split a text that a person wrote; None if it is no part's id.

        Args:
            text: `row`, `row.sample`, or either behind the run's name and a dot.
            run: the run's name; "": the text does not name it.
        """
        match = _PART.fullmatch(text.removeprefix(f"{run}.") if run else text)
        return match and cls(int(match[1]), None if match[2] is None else int(match[2]))

    def __str__(self) -> str:
        return f"{self.row}" if self.sample is None else f"{self.row}.{self.sample}"

    def shard(self, shards: int) -> int:
        """Return the index of the shard that holds it.

        Args:
            shards: how many shards there are.
        """
        return self.row % shards


class CallId(NamedTuple):
    """A call's place in its rollout; as text, `rollout:step:n`.

    Args:
        rollout: the rollout's address.
        step: the rollout's step that sent the call.
        n: its number within the step.
    """

    rollout: str
    step: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split the id of a call that gymq has made.

        Raises:
            ValueError: it has other than three parts, or the last two are no integers.
        """
        rollout, step, n = text.split(":")
        return cls(rollout, int(step), int(n))

    def __str__(self) -> str:
        return f"{self.rollout}:{self.step}:{self.n}"
