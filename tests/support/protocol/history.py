"""What must be true of Redis: the model's own account of everything that the scripts have confirmed.

It is copied with each snapshot of the server and goes back with it; what processes remember (`worker`) does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gymq.store.runs import RunConfig


@dataclass
class Consumed:
    """What a run's declared consumer was given.

    Args:
        due: the rollouts that it is to see: those in the stream when it came, and all that ended since.
        delivered: entry -> rollout.
        acked: the rollouts that it acknowledged.
    """

    due: set[str] = field(default_factory=set)
    delivered: dict[bytes, str] = field(default_factory=dict)
    acked: set[str] = field(default_factory=set)


@dataclass
class Run:
    """A run as it must be.

    Args:
        name: its name.
        samples: of each row.
        born: when it was created, seconds since the epoch: what makes its incarnation.
        state: `open`, `closed`, `cancelled` or `done`.
        tasks: of each row.
        chunks: what was enqueued, by number.
        cursor: how many rollouts were admitted.
        paused: whether it alone is paused.
        live: rollouts in flight.
        ended: rollout -> status, in the order of their ends.
        marked: rollouts that were cancelled before they began.
        doomed: those that then began: nothing but a cancellation can end them.
        unwanted: rollouts in flight that somebody asked to end: no other one may end as cancelled.
        consumers: by name.
    """

    name: str
    samples: int
    born: float
    state: str = "open"
    tasks: list[bytes] = field(default_factory=list)
    chunks: set[int] = field(default_factory=set)
    cursor: int = 0
    paused: bool = False
    live: set[str] = field(default_factory=set)
    ended: dict[str, str] = field(default_factory=dict)
    marked: set[str] = field(default_factory=set)
    doomed: set[str] = field(default_factory=set)
    unwanted: set[str] = field(default_factory=set)
    consumers: dict[str, Consumed] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Rollouts that its rows stand for."""
        return len(self.tasks) * self.samples

    def address(self, place: str) -> str:
        """The address of a rollout whose place is known."""
        return f"{place}~{RunConfig(self.name, '', '', '', created=self.born).incarnation}"

    def rollout(self, place: int) -> str:
        """The name of the rollout at a place of the cursor."""
        return self.address(f"{self.name}.{place // self.samples}.{place % self.samples}")

    def members(self, row: int) -> list[str]:
        """The rollouts of a row."""
        return [self.address(f"{self.name}.{row}.{n}") for n in range(self.samples)]

    def partial(self) -> dict[int, int]:
        """Row -> members ended, of groups that have begun to end and are not complete."""
        counts = {row: sum(rid in self.ended for rid in self.members(row)) for row in range(len(self.tasks))}
        return {row: count for row, count in counts.items() if 0 < count < self.samples}

    def unfinished(self) -> dict[int, bytes]:
        """Row -> task, of rows some of whose rollouts have not ended."""
        return {row: task for row, task in enumerate(self.tasks) if not all(rid in self.ended for rid in self.members(row))}

    def admitted(self, count: int) -> None:
        """The next rollouts were admitted."""
        for place in range(self.cursor, self.cursor + count):
            rid = self.rollout(place)
            self.live.add(rid)
            if rid in self.marked:
                self.marked.remove(rid)
                self.doomed.add(rid)
        self.cursor += count

    def end(self, rid: str, status: str) -> None:
        """A rollout's final commit was confirmed."""
        assert rid in self.live, f"{rid} ended, and was not in flight"
        assert rid not in self.doomed or status == "cancelled"
        assert status != "cancelled" or rid in self.unwanted | self.doomed, f"{rid} was cancelled, and nobody asked for it"
        self.live.remove(rid)
        self.ended[rid] = status
        for consumed in self.consumers.values():
            consumed.due.add(rid)

    def is_over(self) -> bool:
        """Whether an acknowledgement makes it done."""
        over = self.state == "cancelled" or (self.state == "closed" and len(self.ended) == self.total)
        read = all(consumed.due == consumed.acked for consumed in self.consumers.values())
        return self.state == "done" or (over and not self.live and read)


@dataclass
class History:
    """All of it.

    Args:
        runs: by name.
        paused: whether nothing is admitted.
        answered: calls whose reply was merged: rollout, step, number.
        begun: call -> who was told that it begins a call that must not be run twice.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    paused: bool = False
    answered: set[tuple[str, int, int]] = field(default_factory=set)
    begun: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def run_of(self, rid: str) -> Run:
        """The run of a rollout."""
        return self.runs[rid.partition(".")[0]]
