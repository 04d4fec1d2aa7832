"""The weights of a replica, one process's backend: looks which are wanted, loads them, and lets calls wait meanwhile.

It looks once a second, and when `doubt` or a wake-up asks for it. No call begins before its weights are known to be the wanted
ones. While it loads, the actor takes no mail, and the calls in hand wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from gymq.api.backend import Backend, Request
from gymq.errors import GymqError, one_line
from gymq.loop_clock import TimeLimit
from gymq.observe.events import WeightsFailed, WeightsLoaded, WeightsLoading, emit
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.connection import FULL_PAUSE, Connection, Outage, ServerFull
from gymq.store.model_weights import MAX_FAILURES, LoadFailure, Weights, copy, read_weights
from gymq.wire.calls import Generated

log = logging.getLogger(__name__)

#: Seconds between two requests for the turn to load.
LOAD_TURN_PAUSE = 0.1

#: Seconds for which a replica has the turn unless it renews it; one that dies holds up the others for as long.
LOAD_TURN = 5.0

#: Seconds that loading may take, without the calls that end before it; then it has failed.
LOAD_LIMIT = 1800.0


class WeightsChanged(Exception):
    """A call was cut off for other weights; it begins again."""


class WeightUpdater:
    """The updater of a backend's weights.

    Args:
        backend: a backend that takes weights.
        settings: any shard's; the wanted weights are on the first shard.
        model: the SPEC.
        hold: called with True when mail must wait, with False when it may come again.
        changed: called when `version` or `loading` has changed.
        leave: called with the reason why the process must end.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        model: str,
        *,
        hold: Callable[[bool], None],
        changed: Callable[[], None],
        leave: Callable[[GymqError], None],
    ) -> None:
        #: The version that it is loading; None: it loads none.
        self.loading: int | None = None
        #: Whether it waits for its turn before it loads weights; one that serves suspects only does not.
        self.takes_turns = True
        self._backend = backend
        self._model = model
        self._connection = Connection(settings.at(0), "gymq-weights")
        self._hold, self._changed, self._leave = hold, changed, leave
        self._me = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._taken = ""
        self._last: Weights | None = None
        self._doubts, self._sure = 0, -1
        self._failed: GymqError | None = None
        self._lock = asyncio.Lock()
        self._gate = asyncio.Event()
        self._gate.set()
        self._calls: dict[asyncio.Task[Any], tuple[Request, TimeLimit]] = {}
        self._cut: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._look: asyncio.Task[None] | None = None

    @property
    def version(self) -> int:
        """The policy version that it samples with."""
        return self._backend.version

    async def start(self) -> None:
        """Load the wanted weights; no call is served before.

        Raises:
            GymqError: they cannot be loaded.
        """
        await self._connection.reconnect()
        await self._catch_up()
        if self._failed is not None:
            raise self._failed

    async def stop(self) -> None:
        """Stop looking, and close the connection."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])
        await self._connection.close()

    def look(self) -> None:
        """Look soon which weights are wanted, unless a look is under way."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._watch())

    def doubt(self) -> None:
        """Let the next call wait until a new look: this process may have been away."""
        self._doubts += 1

    async def enter(self, request: Request) -> None:
        """Wait until calls may begin; the time is added to the request's `waited`."""
        if self._sure == self._doubts and self._gate.is_set():
            return
        began = time.monotonic()
        while self._sure != self._doubts or not self._gate.is_set():
            if self._sure != self._doubts and self._gate.is_set():
                await self._catch_up()
            await self._gate.wait()
        request.waited += time.monotonic() - began

    async def generate(self, request: Request, limit: TimeLimit) -> Generated:
        """Return the backend's answer.

        Args:
            request: the call.
            limit: its time-out, which pauses while the call stands still.

        Raises:
            WeightsChanged: begin the call again.
        """
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = request, limit
        try:
            return await self._backend.generate(request)
        except asyncio.CancelledError:
            # It may be cancelled for another reason too: its rollout has ended, or its time is over.
            if task not in self._cut or task.uncancel() > 0:
                raise
            raise WeightsChanged from None
        finally:
            self._calls.pop(task, None)
            self._cut.discard(task)
            if not self._calls:
                self._idle.set()

    async def _watch(self) -> None:
        try:
            await self._catch_up()
        except Outage:
            await self._connection.reconnect()
        except GymqError as error:
            log.warning("%s", error)
        if self._failed is not None:
            self._leave(self._failed)

    async def _catch_up(self) -> None:
        async with self._lock:
            while self._failed is None:
                doubts = self._doubts
                wanted = await self._wanted()
                if wanted is None or wanted.id == self._taken:
                    self._sure = doubts
                    return
                # A replica that does not serve yet need not wait for its turn.
                if wanted.rolling and self._sure == doubts and self.takes_turns:
                    if not await self._turn(LOAD_TURN):
                        await asyncio.sleep(LOAD_TURN_PAUSE)
                        continue
                    keeping = asyncio.create_task(self._keep_turn())
                    try:
                        if await self._wanted() == wanted:
                            await self._take(wanted)
                    finally:
                        keeping.cancel()
                        await asyncio.wait([keeping])
                        await self._turn(0)
                else:
                    await self._take(wanted)

    async def _wanted(self) -> Weights | None:
        while True:
            try:
                self._last = await read_weights(self._connection, self._model)
                return self._last
            except Outage:
                await self._connection.reconnect()

    async def _turn(self, seconds: float) -> bool:
        return await self._connection.insist(scripts.take_load_turn(self._model, self._me, round(seconds * 1000)))

    async def _keep_turn(self) -> None:
        while True:
            await asyncio.sleep(LOAD_TURN / 3)
            await self._turn(LOAD_TURN)

    async def _take(self, wanted: Weights) -> None:
        where = f"weights: version {wanted.version} of {self._model} cannot be loaded on {socket.gethostname()}"
        began = time.monotonic()
        emit(WeightsLoading(self._model, wanted.version, wanted.mode))
        self.loading = wanted.version
        self._gate.clear()
        self._hold(True)
        self._changed()
        try:
            if not await asyncio.to_thread(os.path.exists, wanted.path):
                raise GymqError(f"there is no {wanted.path}")
            await self._settle(wanted.mode)
            stopped = self._stop_clocks()
            async with asyncio.timeout(LOAD_LIMIT):
                await self._backend.update_weights(wanted.path, wanted.version, wanted.mode)
        except Exception as error:
            text = str(error) if isinstance(error, GymqError) else f"{type(error).__name__}: {error}"
            reason = one_line(text if wanted.path in text else f"{text} ({wanted.path})")
            emit(WeightsFailed(self._model, wanted.version, reason))
            await self._report(wanted.version, reason)
            # The gate stays closed: the backend's weights are unknown.
            self._failed = GymqError(f"{where}: {reason}; this worker leaves")
            return
        self._backend.version = wanted.version
        self._taken = wanted.id
        self.loading = None
        emit(WeightsLoaded(self._model, wanted.version, time.monotonic() - began))
        self._start_clocks(stopped)
        self._gate.set()
        self._hold(False)
        self._changed()

    async def _settle(self, mode: str) -> None:
        """Freeze, await or cut off the calls in flight, as the mode says."""
        if mode == "keep":
            return
        if mode == "abort":
            for task in self._calls:
                self._cut.add(task)
                task.cancel()
        while self._calls:
            self._idle.clear()
            await self._idle.wait()

    def _stop_clocks(self) -> dict[asyncio.Task[Any], float]:
        """Pause the time-outs of the calls that stand still; return since when, seconds of the loop's clock."""
        now = asyncio.get_running_loop().time()
        for _, limit in self._calls.values():
            limit.pause()
        return dict.fromkeys(self._calls, now)

    def _start_clocks(self, stopped: dict[asyncio.Task[Any], float]) -> None:
        """Resume the time-outs of the calls that stood still."""
        now = asyncio.get_running_loop().time()
        for task, since in stopped.items():
            if task in self._calls:
                request, limit = self._calls[task]
                request.waited += now - since
                limit.resume()

    async def _report(self, version: int, error: str) -> None:
        """Publish a failure to load, for `gymq status`."""
        failure = msgspec.json.encode(LoadFailure(socket.gethostname(), os.getpid(), version, error, time.time()))
        key = self._connection.keys.load_failures(self._model)
        while True:
            try:
                await self._connection.send("LPUSH", key, failure)
                await self._connection.send("LTRIM", key, 0, MAX_FAILURES - 1)
                return
            except Outage:
                await self._connection.reconnect()
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)

    async def mirror(self, connection: Connection) -> None:
        """Copy the wanted weights, as last read from shard 0, to another shard.

        Raises:
            Outage: the connection broke.
        """
        # Shard 0 may be away, and the others go on.
        if self._last is not None:
            await copy(connection, self._last)
