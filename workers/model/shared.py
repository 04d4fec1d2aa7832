"""One backend for the actors of several shards: it has its connections, and its weights, once."""

from __future__ import annotations

import asyncio

from gymq.backend import Backend, Request
from gymq.call import Generated


class Shared(Backend):
    """A backend that is started by the first who starts it, and stopped by the last of its users.

    Args:
        backend: what does the work.
        users: how many will start and stop it.
    """

    def __init__(self, backend: Backend, users: int) -> None:
        super().__init__(backend.model, backend.options)
        self._backend = backend
        self._users = users
        self._lock = asyncio.Lock()
        self._started = False

    async def start(self) -> None:
        """Start it, unless somebody has."""
        async with self._lock:
            if not self._started:
                await self._backend.start()
                self._started = True

    def needs_task(self, environment: str) -> bool:
        """As the backend says."""
        return self._backend.needs_task(environment)

    async def generate(self, request: Request) -> Generated:
        """Let the backend answer."""
        return await self._backend.generate(request)

    async def stop(self) -> None:
        """Stop it if nobody else uses it."""
        self._users -= 1
        if not self._users and self._started:
            await self._backend.stop()
