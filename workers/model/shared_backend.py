"""One backend for all actors of a process, with its connections, weights and rate limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gymq.api.backend import Backend, Request
from gymq.errors import GymqError
from gymq.loop_clock import TimeLimit
from gymq.observe.events import ModelLoading, emit
from gymq.runtime.actor import Actor
from gymq.runtime.rate_limit import SharedLimiter
from gymq.settings import Settings
from gymq.store.connection import Connection
from gymq.wire.calls import Generated
from gymq.wire.json_types import JsonObject

from .weight_updater import WeightUpdater


class SharedBackend:
    """A backend that the first of its users starts, and the last one stops.

    Args:
        backend: the backend.
        settings: any shard's; its rate limits are on the first shard.
        model: the SPEC.
        users: the number of actors that will start and stop it.
    """

    def __init__(self, backend: Backend, settings: Settings, model: str, users: int) -> None:
        self._backend = backend
        self._settings = settings.at(0)
        self._model = model
        self._model = model
        self._users = users
        self._actors: list[Actor] = []
        self._lock = asyncio.Lock()
        self._started = False
        self._failure: GymqError | None = None
        self.needs_task = backend.needs_task
        self.affine = backend.affine
        self.health, self.load, self.quarantinable = backend.health, backend.load, backend.quarantinable
        #: Whether its capacity or its health can change, so that its users must look.
        self.changes = (type(backend).capacity, type(backend).health) != (Backend.capacity, Backend.health)
        #: The updater of its weights; None: it takes none.
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
        """Start it for an actor, unless another has.

        Raises:
            GymqError: it cannot be started, or the wanted weights cannot be loaded.
        """
        self._actors.append(actor)
        async with self._lock:
            if self._failure is not None:
                raise self._failure
            if not self._started:
                for part in self._backend.limited():
                    account = part.account()
                    if account:
                        part.limiter = SharedLimiter(
                            Connection(self._settings, "gymq-rate"),
                            account,
                            self._backend.limits,
                            self._backend.learning,
                            part.subject() or self._model,
                        )
                if not self.quarantinable:  # it hosts its model, which takes minutes to load
                    emit(ModelLoading(self._model))
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
        """Wait until calls may begin; the time is added to the request's `waited`."""
        if self.replica is not None:
            await self.replica.enter(request)

    async def generate(self, request: Request, limit: TimeLimit) -> Generated:
        """Return the backend's answer.

        Args:
            request: the call.
            limit: its time-out, which pauses while the call stands still.

        Raises:
            CallError: see `Backend.generate`.
            WeightsChanged: enter, and begin the call again.
        """
        if self.replica is None:
            return await self._backend.generate(request)
        return await self.replica.generate(request, limit)

    def status(self) -> JsonObject:
        """Return its weights and its load, for the worker registry."""
        status: JsonObject = {}
        if self.replica is not None:
            status = {"version": self.replica.version, "loading": self.replica.loading}
        load = self._backend.load()
        return status | {"load": load} if load else status

    def capacity(self) -> int | None:
        """Return how many calls each of its users may have; None: no limit."""
        most = self._backend.capacity()
        return most if most is None else -(-most // self._users)

    async def stop(self) -> None:
        """Stop it for one user; the last one stops the backend."""
        self._users -= 1
        if not self._users and self._started:
            if self.replica is not None:
                await self.replica.stop()
            await self._backend.stop()
            for part in self._backend.limited():
                if part.limiter is not None:
                    await part.limiter.close()
