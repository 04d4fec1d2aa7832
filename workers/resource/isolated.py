"""Isolated calls: sent to an executor as a Celery task, and watched until they have a reply.

The executor's child replies, or its parent for it. Until then this worker keeps the call's mail, so that the call outlives
the worker. It sends the task again when the executor has died, or when no executor has begun for so long that the task may
have been lost.
"""

from __future__ import annotations

import asyncio
import time

from kombu.exceptions import ChannelError, KombuError
from redis import RedisError

from gymq.loop_clock import loop_clock
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.scripts import CallKey, IsolatedState
from gymq.wire.calls import Call

from ..executor.task import abort, none_waits, submit

#: Seconds between two checks of all calls that are out. It delays no reply, only the notice of a death.
POLL_INTERVAL = 0.5

#: Seconds without a beginning after which a lost task is sent again. It counts as lost if the queue is empty, or if a task
#: that was sent so much later has begun: an executor that dies loses the tasks that it had fetched. A copy is harmless.
RESEND = 3.0

_UNREACHED = (KombuError, ChannelError, RedisError, OSError)


class IsolatedCalls:
    """The calls of one resource worker that executors have.

    Args:
        connection: a connection to the worker's shard.
        liveness: seconds after which a silent executor counts as dead.
    """

    def __init__(self, connection: Connection, liveness: float) -> None:
        self._connection = connection
        self._liveness = liveness
        #: Since when Redis has answered quickly, by the loop's clock; executors are judged only once that is longer than the
        #: liveness.
        self._connected: float | None = None
        #: Call id -> the time at which its executor's key was first missing.
        self._missing: dict[str, float] = {}
        self._out: dict[str, tuple[Call, float, float, asyncio.Future[None]]] = {}
        self._doubtful: set[str] = set()
        self._watcher: asyncio.Task[None] | None = None

    def __contains__(self, call: Call) -> bool:
        """Return whether an executor has this call and has not replied yet."""
        return call.id in self._out

    async def run(self, call: Call, timeout: float) -> None:
        """Send a call to the executors and wait for its reply, or for the end of its rollout's interest.

        Args:
            call: the call with its injected parameters.
            timeout: seconds that it may take.
        """
        await self._submit(call, timeout)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._out[call.id] = (call, timeout, time.monotonic(), answered)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
            self._watcher.add_done_callback(self._watched)
        try:
            await answered
        finally:
            del self._out[call.id]

    async def _watch(self) -> None:
        while self._out:
            await asyncio.sleep(POLL_INTERVAL)
            out = list(self._out.values())
            if not out:
                return
            asked = time.monotonic()
            keys = [CallKey(call.rollout, call.step, call.n) for call, *_ in out]
            states = await self._connection.insist(scripts.isolated_states(keys))
            now, turned = time.monotonic(), loop_clock().now()
            if self._connected is None or now - asked > self._liveness / 3:
                # Redis was away or slow: all executors' keys may have lapsed meanwhile although none is dead.
                self._connected = turned
                self._missing.clear()
            dead = {call.id for (call, *_), state in zip(out, states, strict=True) if state is IsolatedState.EXECUTOR_DEAD}
            self._missing = {id: self._missing.get(id, turned) for id in dead}
            sure = turned - self._connected > self._liveness
            # Unwanted, and with an executor in two checks in a row: at the first one it may just have replied.
            unwanted = {call.id for (call, *_), state in zip(out, states, strict=True) if state is IsolatedState.GIVEN_UP}
            unwanted -= {call.id for call, *_ in out if call.kind == "close"}  # clean-up runs to its end
            if aborted := unwanted & self._doubtful:
                await asyncio.to_thread(abort, sorted(aborted))
            self._doubtful = unwanted - aborted
            ages = [(since, state is IsolatedState.NOT_BEGUN) for (_, _, since, _), state in zip(out, states, strict=True)]
            begun = max((since for since, waits in ages if not waits), default=0.0)
            old = any(waits and now - since > RESEND for since, waits in ages)
            # If the queue is empty, all tasks that have not begun are lost; else those that were overtaken.
            before = now if old and await _none_waits() else begun
            for (call, timeout, since, answered), state in zip(out, states, strict=True):
                cleaned = state is IsolatedState.GIVEN_UP and call.kind == "close"
                if state is IsolatedState.OVER or call.id in aborted or cleaned:
                    if not answered.done():
                        answered.set_result(None)
                elif (sure and turned - self._missing.get(call.id, turned) >= self._liveness / 3) or (
                    state is IsolatedState.NOT_BEGUN and before - since > RESEND
                ):
                    await self._submit(call, timeout)
                    self._missing.pop(call.id, None)
                    if call.id in self._out:  # it may have ended meanwhile
                        self._out[call.id] = (call, timeout, time.monotonic(), answered)

    def _watched(self, watcher: asyncio.Task[None]) -> None:
        """Pass a watcher's failure on to all that wait."""
        if not watcher.cancelled() and (error := watcher.exception()) is not None:
            for *_, answered in self._out.values():
                if not answered.done():
                    answered.set_exception(error)

    async def _submit(self, call: Call, timeout: float) -> None:
        """Send a task, and retry as long as Redis is away or full."""
        while True:
            try:
                return await asyncio.to_thread(submit, call, timeout)
            except _UNREACHED:
                await asyncio.sleep(POLL_INTERVAL)


async def _none_waits() -> bool:
    try:
        return await asyncio.to_thread(none_waits)
    except _UNREACHED:
        return False  # the next check is soon
