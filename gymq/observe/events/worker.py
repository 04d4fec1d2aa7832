"""Events of a worker's life."""

from __future__ import annotations

from gymq.observe.events.event import Event


class WorkerReady(Event, frozen=True, gc=False):
    """A worker stands in the registry and takes mail.

    Args:
        role: its role.
        worker: its name in Redis; after a lapse it is ready again under a new one.
        serves: the mailboxes that it reads; of an executor its queue.
        server: the shard's address without password.
    """

    role: str
    worker: str
    serves: list[str]
    server: str


class Draining(Event, frozen=True, gc=False):
    """A worker takes no more mail.

    Args:
        role: its role.
        worker: its name.
        held: messages that it holds and finishes.
    """

    role: str
    worker: str
    held: int


class WorkerLeft(Event, frozen=True, gc=False):
    """A worker has left the registry; what it still held was handed back.

    Args:
        role: its role.
        worker: its name.
        handed_back: messages that it had not finished.
        reason: the error that ended it; empty: it was drained or stopped.
    """

    role: str
    worker: str
    handed_back: int
    reason: str = ""


class Lapsed(Event, frozen=True, gc=False):
    """A worker's lease has lapsed: it was declared dead, and its mail belongs to others.

    Args:
        role: its role.
        worker: the name that died.
        limit: the liveness limit, seconds.
        dropped: messages that it held.
    """

    role: str
    worker: str
    limit: float
    dropped: int


class HandedBack(Event, frozen=True, gc=False):
    """A worker has handed back a dead worker's mail.

    Args:
        dead: the dead worker's name.
        role: the dead worker's role; empty: its entry in the registry could not be read, or it had none.
        messages: how many.
    """

    dead: str
    role: str
    messages: int
