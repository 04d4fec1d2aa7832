"""The host of a worker as Celery's side sees it: an actor, several of them, or an executor."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from gymq.observe.metrics import WorkerGauges

#: A Celery event: its type and its fields.
Event = tuple[str, dict[str, Any]]

#: Options of a role's command line by name: text from Celery's command line, other plain values from code.
RoleOptions = dict[str, Any]

#: Events that wait to be sent; the oldest are dropped first while Redis is away and no event can be sent.
EVENT_LIMIT = 10_000


class WorkerHost(Protocol):
    """The requests of remote control to a worker, made from Celery's main thread."""

    def drain(self) -> None:
        """Take no more work, and end when what is held is finished; may be called again."""
        ...

    def wake(self) -> None:
        """Look now at what is wanted: weights, admissions."""
        ...

    def stats(self) -> dict[str, Any]:
        """Return the numbers for `celery inspect stats`."""
        ...

    def gauges(self) -> WorkerGauges:
        """Return what it has in hand now; may be called from any thread."""
        ...


class HostedActor(WorkerHost, Protocol):
    """An actor, or several as one, as the thread sees it that it lives in."""

    @property
    def events(self) -> deque[Event]:
        """Events that wait to be sent."""
        ...

    async def main(self) -> None:
        """Live until drained or stopped; an exception means that the process must end."""
        ...

    def stop(self) -> None:
        """Hand back what is held, now."""
        ...
