"""The wait of a command's run, read now and then for its progress."""

from __future__ import annotations

import time

from gymq.errors import ServerUnreachable
from gymq.ops.bottleneck import bottleneck
from gymq.ops.situation import read_situation
from gymq.store.run_status import RunStatus
from gymq.store.sharded import Shards

#: Seconds between two looks: workers tell what they do about as often, and a look is some thirty commands to Redis.
PERIOD = 2.0


class WaitReader:
    """Reads what a run waits for whose workers this process has started.

    Args:
        server: the option by which others find its server; "": they need none.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._due = 0.0
        self._words = ""

    async def words(self, shards: Shards, run: RunStatus) -> str:
        """Return what a run waits for, as of the last look.

        Args:
            shards: connections to all shards.
            run: its progress.

        Raises:
            Outage: a connection broke.
        """
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + PERIOD
            try:
                self._words = bottleneck(await read_situation(shards, run, attended=self._server)).words
            except ServerUnreachable as error:
                self._words = f"Celery's broker: {error}"
        return self._words
