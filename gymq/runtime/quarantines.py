"""The quarantines of one worker: several at once, each alone with one suspect, so that slow innocents do not wait in a row."""

from __future__ import annotations

import asyncio
import time

from gymq.runtime.quarantine import Quarantine
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings

#: Quarantines of one worker at most: each takes the memory of a worker, and most suspects wait for something.
MOST = 4

#: Seconds that a quarantine may take to begin; until then it counts as being on its way to a suspect that waits.
BEGINNING = 5.0


class Quarantines:
    """One worker's quarantines, started as suspects wait, one in each look; each ends by itself when none come.

    Args:
        role: the worker's role.
        settings: the worker's settings.
        options: the role's options.
        most: how many run at once.
    """

    def __init__(self, role: str, settings: Settings, options: RoleOptions, most: int) -> None:
        self._all = [Quarantine(role, settings, options) for _ in range(most)]

    async def look(self, waiting: int) -> None:
        """Start one more if suspects wait for which none is on its way.

        Args:
            waiting: how many suspects lie in mailboxes untaken.
        """
        now = time.monotonic()
        for one in self._all:
            one.look()
        waiting -= sum(one.running and now - one.started < BEGINNING for one in self._all)
        if waiting > 0:
            free = next((one for one in self._all if not one.running and now >= one.due), None)
            if free is not None:
                await free.start()

    async def end(self) -> None:
        """End all, at the same time; they hand back what they hold."""
        await asyncio.gather(*(one.end() for one in self._all))
