"""What the processes of the model remember: it is lost when they die, and not when Redis goes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gymq.runtime.mailbox import Mail
from gymq.wire.consumer_member import Epoch

AGENT, RESOURCE = "agent", "resource:e"
BOXES = (AGENT, RESOURCE)

#: Workers: even numbers are agents, odd ones serve calls; the last of each is its quarantine.
NUMBERS = range(6)
QUARANTINES = 4


@dataclass
class Head:
    """What an agent knows of a rollout: its version, its newest turn, its phase.

    Args:
        version: how many steps were committed.
        turn: the id of the newest turn; None before the first.
        phase: `going`, `waiting` (nothing is pending, it goes on when it is due) or `closing`.
    """

    version: int
    turn: int | None
    phase: str


@dataclass(eq=False)
class Worker:
    """One incarnation of an agent or a resource worker.

    Args:
        number: see `NUMBERS`.
        name: under which it stands in the registry.
        held: mail that it took and has not seen acknowledged.
        decided: what it has begun to send for mail, by the mail's stream and id: sent again as it is until it is answered.
        heads: what it keeps of rollouts.
        drains: its private mailbox is closed, and nothing waits there.
    """

    number: int
    name: str
    held: list[Mail] = field(default_factory=list)
    decided: dict[tuple[bytes, bytes], Any] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)
    drains: bool = False

    @property
    def private(self) -> bool:
        """Whether it has a private mailbox: who serves calls, but for quarantines."""
        return self.box == RESOURCE and not self.alone

    @property
    def box(self) -> str:
        """The one mailbox that it reads."""
        return BOXES[self.number % 2]

    @property
    def alone(self) -> bool:
        """Whether it reads suspects and nothing else."""
        return self.number >= QUARANTINES

    def forget(self) -> None:
        """Drop all that it was doing."""
        self.held, self.decided, self.heads = [], {}, {}

    def release(self, mail: Mail) -> None:
        """Its mail was acknowledged."""
        self.held = [one for one in self.held if (one.stream, one.id) != (mail.stream, mail.id)]
        self.decided.pop((mail.stream, mail.id), None)


@dataclass
class Reader:
    """A consumer's process.

    Args:
        run: whose rollouts it reads.
        name: the consumer's.
        held: entry -> rollout, of what was delivered and not acknowledged.
        seen: what it has used; it never uses one twice.
        epoch: that of the process; None: it has not joined.
        stale: the one of the process before it.
    """

    run: str
    name: str
    held: dict[bytes, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    epoch: Epoch | None = None
    stale: Epoch | None = None
