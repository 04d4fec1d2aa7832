"""Rate limits that all processes share: permits from token buckets in Redis, and a rate that is learned from refusals.

Without a stated limit and a refusal, no command is sent. From the first refusal (HTTP 429) on, a process asks for permits
until the learned rate has ended. `acquire_permits.lua` grants them; a process gathers its waiting requests, so that one
script call serves all of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import random
import socket
import time
from collections import deque

import msgspec

from gymq.aio import cancel_and_wait
from gymq.api.backend import MAX_RETRY_AFTER, PERMIT_WAIT, Limit, Permit
from gymq.errors import CallError, GymqError
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.scripts import PermitRequest, Refusal

#: Requests in one script call: it must not hold Redis for long.
MAX_ASKS = 128

#: Seconds over which a process counts its answers.
RATE_SPAN = 5.0


class SharedLimiter:
    """One endpoint's limits, as one process sees them; requests of one event loop share it.

    Args:
        connection: a connection of its own to shard 0; opened when it is needed first.
        name: the key of the limits, the same in all processes that share them; see `digest`.
        limits: the stated limits; without any, only a learned rate limits.
    """

    def __init__(self, connection: Connection, name: str, limits: list[Limit]) -> None:
        self._connection = connection
        self._name = name
        self._limits = limits
        self._me = f"{socket.gethostname()}-{os.getpid()}-{id(self):x}"
        self._learned = False
        self._waiting: deque[tuple[Permit, asyncio.Future[None]]] = deque()
        self._back = [0.0] * (len(limits) + 1)
        self._refusal: Refusal | None = None
        self._answers = DecayingCount(RATE_SPAN)
        self._task: asyncio.Task[None] | None = None

    async def enter(self, patience: float = PERMIT_WAIT, **costs: float) -> Permit:
        """Wait until a request may be sent.

        Args:
            patience: seconds to wait at most.
            costs: the request's cost of each limit by name; 1 where not given.

        Raises:
            CallError: `timeout`.
        """
        permit = Permit([costs.get(limit.name, 1.0) for limit in self._limits])
        if not self._limits and not self._learned:
            return permit
        began = time.monotonic()
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((permit, granted))
        self._start()
        try:
            async with asyncio.timeout(patience):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled():
                self._give_back(permit)  # it came at the same moment
            granted.cancel()
            if isinstance(error, TimeoutError):
                raise CallError(
                    "timeout",
                    f"the rate limit granted no permit within {patience:g} s; raise rpm or tpm, or start fewer rollouts",
                ) from None
            raise
        permit.waited = time.monotonic() - began
        return permit

    def answered(self, permit: Permit, **used: float) -> None:
        """Report a request's answer.

        Args:
            permit: the request's permit.
            used: its true cost of each limit by name, where that differs from the estimate.
        """
        if not self._learned:
            self._answers.add(time.monotonic())
        self.correct(permit, **used)

    def correct(self, permit: Permit, **used: float) -> None:
        """Report a request's true cost; the next script call passes the difference on.

        Args:
            permit: the request's permit.
            used: its true cost of each limit by name.
        """
        for i, limit in enumerate(self._limits):
            if limit.name in used:
                self._back[i] += permit.costs[i] - used[limit.name]
                permit.costs[i] = used[limit.name]

    def refused(self, permit: Permit, retry_after: float | None) -> None:
        """Report that the endpoint refused a request because there are too many; all processes slow down.

        Args:
            permit: the request's permit.
            retry_after: seconds in which the endpoint wants no request from any process, or None.
        """
        pause = 1000 * min(MAX_RETRY_AFTER, max(0.0, retry_after or 0.0))
        # Requests that were on their way, without a permit, when this process began to ask say nothing new.
        first = not (self._learned or permit.at)
        known = self._refusal or Refusal(0.0, 0.0, first, 0.0)
        answers = max(known.answers, self._answers.rate(time.monotonic()))
        self._refusal = Refusal(max(known.at, permit.at), max(known.pause, pause), known.fresh, answers)
        self._learned = True
        self._start()

    async def close(self) -> None:
        """Close the connection."""
        if self._task is not None:
            await cancel_and_wait([self._task])
        await self._connection.close()

    def _give_back(self, permit: Permit) -> None:
        for i, cost in enumerate(permit.costs):
            self._back[i] += cost
        self._back[-1] += 1

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            while self._waiting or self._refusal is not None:
                wait = await self._ask()
                if wait:
                    # Spread, so that another process comes first each time; never sooner than Redis said.
                    await asyncio.sleep(wait * random.uniform(1.0, 1.1))
        except GymqError as error:
            for _, future in self._waiting:
                if not future.done():
                    future.set_exception(CallError("internal", str(error)))
            self._waiting.clear()

    async def _ask(self) -> float:
        """Ask once for all waiting requests, and return the seconds after which to ask again."""
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()
        batch = [item for item, _ in zip(self._waiting, range(MAX_ASKS), strict=False)]
        asks = [permit.costs for permit, _ in batch]
        back, self._back = self._back, [0.0] * len(self._back)
        refusal, self._refusal = self._refusal, None
        # Sent again after an outage it may take permits twice; the buckets fill again.
        request = PermitRequest(self._name, self._me, self._limits, asks, back, refusal)
        reply = await self._connection.insist(scripts.acquire_permits(request))
        self._learned = reply.learned or self._refusal is not None
        for permit, future in batch[: reply.granted]:
            self._waiting.popleft()
            permit.at = reply.now
            if future.done():
                self._give_back(permit)
            else:
                future.set_result(None)
        return reply.wait / 1000 if reply.granted < len(batch) else 0.0


class DecayingCount:
    """A count of events that fades exponentially.

    Args:
        span: seconds in which it falls to a third.
    """

    def __init__(self, span: float) -> None:
        self._span = span
        self._count = 0.0
        self._at = 0.0

    def add(self, now: float) -> None:
        """Count an event at a time in seconds."""
        self._count = 1.0 + self._count * math.exp((self._at - now) / self._span)
        self._at = now

    def rate(self, now: float) -> float:
        """Return the events per second at a time in seconds."""
        return self._count * math.exp((self._at - now) / self._span) / self._span


def digest(*parts: str) -> str:
    """Return a name for the limits of an account (address, model, key) from which none of its parts can be read."""
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=16).hexdigest()
