"""The rollouts of a run that a consumer has: one bit for each, so that a million of them are 122 KiB."""

from __future__ import annotations

from collections.abc import Iterator

from gymq.errors import DataError
from gymq.wire.ids import RolloutId


class RolloutSet:
    """A set of rollouts of one run.

    Args:
        run: the run's name.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._count = 0
        # For each sample a bit for each row.
        self._bits: dict[int, bytearray] = {}

    def __len__(self) -> int:
        return self._count

    def __contains__(self, rollout: str) -> bool:
        row, sample = self._place(rollout)
        bits = self._bits.get(sample, b"")
        return row >> 3 < len(bits) and bool(bits[row >> 3] & 1 << (row & 7))

    def __iter__(self) -> Iterator[str]:
        for sample, bits in sorted(self._bits.items()):
            for index, byte in enumerate(bits):
                for bit in range(8) if byte else ():
                    if byte & 1 << bit:
                        yield str(RolloutId(self._run, index * 8 + bit, sample))

    def count(self, shard: int, shards: int) -> int:
        """Return how many of the rollouts are a shard's.

        Args:
            shard: which one.
            shards: how many there are.
        """
        return self._count if shards == 1 else sum(RolloutId.parse(rid).shard(shards) == shard for rid in self)

    def add(self, rollout: str) -> bool:
        """Add a rollout; returns whether it is new.

        Args:
            rollout: its id, `run.row.sample`.

        Raises:
            DataError: it is of another run, or no rollout's id.
        """
        row, sample = self._place(rollout)
        bits = self._bits.setdefault(sample, bytearray())
        if row >> 3 >= len(bits):
            # Twice what is there: rows come roughly in order, and must not cost a copy each.
            bits.extend(bytes(max((row >> 3) + 1 - len(bits), len(bits))))
        mask = 1 << (row & 7)
        if bits[row >> 3] & mask:
            return False
        bits[row >> 3] |= mask
        self._count += 1
        return True

    def _place(self, rollout: str) -> tuple[int, int]:
        place = RolloutId.check(rollout)
        if place is None:
            raise DataError(f"{rollout[:200]!r} is no rollout's id")
        if place.run != self._run:
            raise DataError(f"rollout {rollout!r} is of run {place.run!r}, not {self._run!r}")
        return place.row, place.sample
