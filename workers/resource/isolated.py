"""Isolated calls: given to an executor by a Celery task, and watched until somebody has answered.

The executor's child replies by itself, or its parent for it. This side keeps the call's mail until then, so that the call
outlives this worker; and it sends the task again when the executor died, or when nobody has begun for so long that the
task may have been lost on its way.
"""

from __future__ import annotations

import asyncio
import time

from kombu.exceptions import ChannelError, KombuError
from redis import RedisError

from gymq.store.batching import pack
from gymq.store.connection import Connection
from gymq.wire.calls import Call

from ..executor.task import abort, none_waits, submit

#: Seconds between two looks at all calls that are out. The reply does not wait for it; only a death does.
POLL_INTERVAL = 0.5

#: What `waiting.lua` says of a call that nobody wants any more and that an executor works on, or has just answered.
GIVEN_UP = 4

#: Seconds without a beginning after which the task is sent again if it was lost: none waits in the queue, or one that
#: was sent so much later has begun. An executor that dies takes those with it that it had taken and not begun. A copy does
#: no harm while the first one runs.
RESEND = 3.0

_UNREACHED = (KombuError, ChannelError, RedisError, OSError)


class IsolatedCalls:
    """The calls that one resource worker has given to executors.

    Args:
        connection: a connection.
        liveness: seconds after which a silent executor counts as dead.
    """

    def __init__(self, connection: Connection, liveness: float) -> None:
        self._connection = connection
        self._liveness = liveness
        #: Since when Redis has answered quickly; who has not been connected for longer than the limit judges nobody.
        self._connected = time.monotonic()
        #: Call -> when its executor's key was first seen to be missing.
        self._missing: dict[str, float] = {}
        self._out: dict[str, tuple[Call, float, float, asyncio.Future[None]]] = {}
        self._doubtful: set[str] = set()
        self._watcher: asyncio.Task[None] | None = None

    def __contains__(self, call: Call) -> bool:
        """Whether an executor was given this call and nobody has answered it yet."""
        return call.id in self._out

    async def run(self, call: Call, timeout: float) -> None:
        """Give a call to an executor and wait until somebody has answered it, or nobody wants it any more.

        Args:
            call: the call with all that it asks for.
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
            states = await self._connection.insist("waiting", pack([[call.rollout, call.step, call.n] for call, *_ in out]))
            now = time.monotonic()
            if now - asked > self._liveness / 3:
                # Redis was away, or slow: all executors' keys may have lapsed meanwhile, and nobody is dead.
                self._connected = now
                self._missing.clear()
            dead = {call.id for (call, *_), state in zip(out, states, strict=True) if state == 3}
            self._missing = {id: self._missing.get(id, now) for id in dead}
            sure = now - self._connected > self._liveness
            # Not wanted any more, and an executor at it at two looks: at the first one it may just have answered.
            unwanted = {call.id for (call, *_), state in zip(out, states, strict=True) if state == GIVEN_UP}
            unwanted -= {call.id for call, *_ in out if call.kind == "close"}  # what cleans up runs to its end
            if aborted := unwanted & self._doubtful:
                await asyncio.to_thread(abort, sorted(aborted))
            self._doubtful = unwanted - aborted
            begun = max((since for (_, _, since, _), state in zip(out, states, strict=True) if state != 1), default=0.0)
            old = any(state == 1 and now - since > RESEND for (_, _, since, _), state in zip(out, states, strict=True))
            # Later ones are lost if none waits: the queue is empty. Else those that were overtaken.
            before = now if old and await _none_waits() else begun
            for (call, timeout, since, answered), state in zip(out, states, strict=True):
                if state == 0 or call.id in aborted or (state == GIVEN_UP and call.kind == "close"):
                    if not answered.done():
                        answered.set_result(None)
                elif (sure and now - self._missing.get(call.id, now) >= self._liveness / 3) or (
                    state == 1 and before - since > RESEND
                ):
                    await self._submit(call, timeout)
                    self._missing.pop(call.id, None)
                    if call.id in self._out:  # else it was given up meanwhile
                        self._out[call.id] = (call, timeout, time.monotonic(), answered)

    def _watched(self, watcher: asyncio.Task[None]) -> None:
        """A watcher that failed leaves nobody waiting."""
        if not watcher.cancelled() and (error := watcher.exception()) is not None:
            for *_, answered in self._out.values():
                if not answered.done():
                    answered.set_exception(error)

    async def _submit(self, call: Call, timeout: float) -> None:
        """Send a task, however long Redis is away or full."""
        while True:
            try:
                return await asyncio.to_thread(submit, call, timeout)
            except _UNREACHED:
                await asyncio.sleep(POLL_INTERVAL)


async def _none_waits() -> bool:
    try:
        return await asyncio.to_thread(none_waits)
    except _UNREACHED:
        return False  # the next look is soon
