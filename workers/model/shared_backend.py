"""One backend for all actors of a process: its connections, its weights and its rate limits are there once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gymq.api.backend import Backend, Request
from gymq.errors import GymqError
from gymq.runtime.actor import Actor
from gymq.runtime.rate_limit import SharedLimiter
from gymq.settings import Settings
from gymq.store.connection import Connection
from gymq.wire.calls import Generated

from .weight_updater import WeightUpdater


class SharedBackend:
    """A backend that is started by the first who starts it, and stopped by the last of its users.

    Args:
        backend: what does the work.
        settings: where the limits stand that it shares with all others of its account: on the first shard.
        model: the SPEC.
        users: how many will start and stop it.
    """

    def __init__(self, backend: Backend, settings: Settings, model: str, users: int) -> None:
        self._backend = backend
        self._settings = settings.at(0)
        self._users = users
        self._actors: list[Actor] = []
        self._lock = asyncio.Lock()
        self._started = False
        self._failure: GymqError | None = None
        self.needs_task = backend.needs_task
        self.affine = backend.affine
        self.health, self.load, self.quarantinable = backend.health, backend.load, backend.quarantinable
        #: Whether its capacity or its health can change, so that somebody must look.
        self.changes = (type(backend).capacity, type(backend).health) != (Backend.capacity, Backend.health)
        #: What keeps it at the weights that are wanted; None: it takes none.
        self.replica: WeightUpdater | None = None
        if backend.versioned:
            self.replica = WeightUpdater(
                backend,
                settings,
                model,
                hold=lambda held: self._each(lambda actor: actor.intake.hold(held)),
                changed=lambda: self._each(lambda actor: actor.wake()),
                leave=lambda error: self._each(lambda actor: actor.leave(error)),
            )

    def _each(self, what: Callable[[Actor], None]) -> None:
        for actor in self._actors:
            what(actor)

    async def start(self, actor: Actor) -> None:
        """Start it, unless somebody has.

        Args:
            actor: who uses it from now on.

        Raises:
            GymqError: it cannot be started, or the weights that are wanted cannot be loaded.
        """
        self._actors.append(actor)
        async with self._lock:
            if self._failure is not None:
                raise self._failure
            if not self._started:
                for part in self._backend.limited():
                    account = part.account()
                    if account:
                        part.limiter = SharedLimiter(Connection(self._settings, "gymq-rate"), account, self._backend.limits)
                await self._backend.start()
                self._started = True
                if self.replica is not None:
                    self.replica.takes_turns = not actor.suspects_only
                    await self._first_weights(self.replica)

    async def _first_weights(self, replica: WeightUpdater) -> None:
        try:
            await replica.start()
        except GymqError as error:
            self._failure = error
            await self._backend.stop()
            raise

    async def enter(self, request: Request) -> None:
        """Wait until calls may be made; the time stands in the request."""
        if self.replica is not None:
            await self.replica.enter(request)

    async def generate(self, request: Request, limit: asyncio.Timeout) -> Generated:
        """Let the backend answer.

        Args:
            request: what is asked.
            limit: of the call; it does not run while the call stands still.

        Raises:
            CallError: see `Backend.generate`.
            Begun: other weights came; enter, and ask again.
        """
        if self.replica is None:
            return await self._backend.generate(request)
        return await self.replica.generate(request, limit)

    def told(self) -> dict[str, Any]:
        """What the registry says of its weights and of its load."""
        told: dict[str, Any] = {}
        if self.replica is not None:
            told = {"version": self.replica.version, "loading": self.replica.loading}
        load = self._backend.load()
        return told | {"load": load} if load else told

    def capacity(self) -> int | None:
        """How many calls one of its users may have; None: it sets no limit."""
        most = self._backend.capacity()
        return most if most is None else -(-most // self._users)

    async def stop(self) -> None:
        """Stop it if nobody else uses it."""
        self._users -= 1
        if not self._users and self._started:
            if self.replica is not None:
                await self.replica.stop()
            await self._backend.stop()
            for part in self._backend.limited():
                if part.limiter is not None:
                    await part.limiter.close()
