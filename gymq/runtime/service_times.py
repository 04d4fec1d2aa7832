"""The time that counts: Redis's clock, and since when each mailbox has been served.

No process decides by its own clock, which may be wrong by hours; and a call waits only while there is a worker that may take
it: after an outage, or while everything is down, what is overdue has not been late.
"""

from __future__ import annotations

import time
from math import inf

from gymq.store import scripts
from gymq.store.connection import Connection

#: Seconds between two looks of a mailbox's workers, of which each looks once a second, after which it was not served.
GAP = 10.0

#: Seconds after which times of service are forgotten: whoever comes later begins anew.
KEPT = 86400.0


class ServiceTimes:
    """The time by one shard's server, and since when its mailboxes have been served."""

    def __init__(self) -> None:
        self._ahead: float | None = None
        self._served: dict[str, tuple[float, float]] = {}

    async def look(self, connection: Connection, mailboxes: list[str], everybody: bool) -> None:
        """Say that mailboxes are served, and set the clock.

        Args:
            connection: a connection to the shard.
            mailboxes: the mailboxes that this worker serves.
            everybody: read also since when all mailboxes have been served.

        Raises:
            Outage: the connection broke.
            ServerFull: the server's memory is full.
        """
        seen = await connection.run(scripts.mark_served(round(GAP * 1000), round(KEPT * 1000), everybody, mailboxes))
        self._ahead = seen.now - time.monotonic()
        if everybody:
            self._served = seen.served

    @property
    def known(self) -> bool:
        """Whether the server's time is known."""
        return self._ahead is not None

    def now(self) -> float:
        """Return the server's time, seconds since the epoch; this process's, before the first look."""
        return time.time() if self._ahead is None else time.monotonic() + self._ahead

    def since(self, *mailboxes: str) -> float:
        """Return since when all of some mailboxes have been served without a gap, seconds; infinity: one is not served now."""
        since, now = 0.0, self.now()
        for mailbox in mailboxes:
            began, last = self._served.get(mailbox, (inf, 0.0))
            since = max(since, began if now - last <= GAP else inf)
        return since
