"""Events of the outages of Redis."""

from __future__ import annotations

from gymq.observe.events.event import Event


class OutageBegan(Event, frozen=True, gc=False):
    """A shard cannot be reached, or cannot serve; told once, whatever number of connections it breaks.

    Args:
        shard: its number.
        server: its address without password.
        reason: one line.
    """

    shard: int
    server: str
    reason: str


class OutageEnded(Event, frozen=True, gc=False):
    """A shard has answered again.

    Args:
        shard: its number.
        server: its address without password.
        seconds: how long it was away.
    """

    shard: int
    server: str
    seconds: float
