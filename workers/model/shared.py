"""One backend for all actors of a process: its connections, its weights and its rate limits are there once."""

from __future__ import annotations

import asyncio

from gymq.backend import Backend, Request
from gymq.call import Generated
from gymq.link import Link
from gymq.rate import Limiter
from gymq.settings import Settings


class Shared:
    """A backend that is started by the first who starts it, and stopped by the last of its users.

    Args:
        backend: what does the work.
        settings: where the limits stand that it shares with all others of its account: on the first shard.
        users: how many will start and stop it.
    """

    def __init__(self, backend: Backend, settings: Settings, users: int) -> None:
        self._backend = backend
        self._settings = settings.at(0)
        self._users = users
        self._lock = asyncio.Lock()
        self._started = False
        self.needs_task = backend.needs_task
        self.affine = backend.affine

    async def start(self) -> None:
        """Start it, unless somebody has."""
        async with self._lock:
            if not self._started:
                for part in self._backend.limited():
                    account = part.account()
                    if account:
                        part.limiter = Limiter(Link(self._settings, "gymq-rate"), account, self._backend.limits)
                await self._backend.start()
                self._started = True

    async def generate(self, request: Request) -> Generated:
        """Let the backend answer."""
        return await self._backend.generate(request)

    async def stop(self) -> None:
        """Stop it if nobody else uses it."""
        self._users -= 1
        if not self._users and self._started:
            await self._backend.stop()
            for part in self._backend.limited():
                if part.limiter is not None:
                    await part.limiter.close()
