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

from gymq.batch import pack
from gymq.bootstep import ISOLATED_QUEUE
from gymq.call import Call
from gymq.link import Link, Outage

from ..executor.task import submit

#: Seconds between two looks at all calls that are out. The reply does not wait for it; only a death does.
LOOK = 0.5

#: Seconds without a beginning after which the task is sent again if it was lost: none waits in the queue, or one that
#: was sent so much later has begun. An executor that dies takes those with it that it had taken and not begun. A copy does
#: no harm while the first one runs.
RESEND = 3.0

#: Where the tasks wait: the queue, and what kombu makes of it for the normal priority.
QUEUES = (ISOLATED_QUEUE, f"{ISOLATED_QUEUE}\x06\x169")


class Isolated:
    """The calls that one resource worker has given to executors.

    Args:
        link: a connection.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._out: dict[str, tuple[Call, float, float, asyncio.Future[None]]] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def run(self, call: Call, timeout: float) -> None:
        """Give a call to an executor and wait until somebody has answered it.

        Args:
            call: the call with all that it asks for.
            timeout: seconds that it may take.
        """
        await self._submit(call, timeout)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._out[call.id] = (call, timeout, time.monotonic(), answered)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        try:
            await answered
        finally:
            del self._out[call.id]

    async def _watch(self) -> None:
        while self._out:
            await asyncio.sleep(LOOK)
            out = list(self._out.values())
            if not out:
                return
            states = await self._link.insist("waiting", pack([[call.rollout, call.step, call.n] for call, *_ in out]))
            now = time.monotonic()
            begun = max((since for (_, _, since, _), state in zip(out, states, strict=True) if state != 1), default=0.0)
            old = any(state == 1 and now - since > RESEND for (_, _, since, _), state in zip(out, states, strict=True))
            # Later ones are lost if none waits: the queue is empty. Else those that were overtaken.
            before = now if old and await self._none_waits() else begun
            for (call, timeout, since, answered), state in zip(out, states, strict=True):
                if state == 0 and not answered.done():
                    answered.set_result(None)
                elif state == 3 or (state == 1 and before - since > RESEND):
                    await self._submit(call, timeout)
                    if call.id in self._out:  # else it was given up meanwhile
                        self._out[call.id] = (call, timeout, time.monotonic(), answered)

    async def _submit(self, call: Call, timeout: float) -> None:
        """Send a task, however long Redis is away or full."""
        while True:
            try:
                return await asyncio.to_thread(submit, call, timeout)
            except (KombuError, ChannelError, RedisError, OSError):
                await asyncio.sleep(LOOK)

    async def _none_waits(self) -> bool:
        try:
            return not any([await self._link.send("LLEN", queue) for queue in QUEUES])
        except Outage:
            return False  # the next look meets the outage again
