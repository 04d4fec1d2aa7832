"""Which rollouts of a run a consumer has: one bit for each, so that a million of them are 122 KiB."""

from __future__ import annotations

from collections.abc import Iterator

from gymq.errors import DataError


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
            for place, byte in enumerate(bits):
                for bit in range(8) if byte else ():
                    if byte & 1 << bit:
                        yield f"{self._run}.{place * 8 + bit}.{sample}"

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
        run, _, rest = rollout.partition(".")
        row, _, sample = rest.partition(".")
        if run != self._run:
            raise DataError(f"rollout {rollout[:200]!r} is of run {run[:100]!r}, not {self._run!r}")
        if not (
            row.isdecimal() and sample.isdecimal() and row.isascii() and sample.isascii() and len(row) < 12 and len(sample) < 7
        ):
            raise DataError(f"{rollout[:200]!r} is no rollout's id")
        return int(row), int(sample)
