"""Events of sinks."""

from __future__ import annotations

from gymq.observe.events.event import Event


class RolloutsStored(Event, frozen=True, gc=False):
    """A sink has made rollouts durable and acknowledged them.

    Args:
        run: the run's name.
        rollouts: how many.
        seconds: of the commit.
    """

    run: str
    rollouts: int
    seconds: float
