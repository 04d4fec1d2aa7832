"""Rate limits that all processes share: permits from token buckets in Redis, and a rate that is learned from refusals.

Without a stated limit and a refusal, no command is sent. A process that is refused (HTTP 429) tells Redis how much it sent of
late and how much of that was refused; only if the refusals follow load a learned rate begins, and the process asks for
permits until it has ended. `acquire_permits.lua` judges and grants; a process gathers its waiting requests, so that one
script call serves all of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import os
import random
import socket
import time

import msgspec

from gymq.aio import cancel_and_wait
from gymq.api.limiter import PERMIT_WAIT, Learning, Limit, Permit
from gymq.errors import CallError, GymqError
from gymq.loop_clock import TimeLimit
from gymq.runtime.limit_teller import LimitTeller
from gymq.runtime.request_window import RequestWindow
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.scripts import FreeRequests, PermitRequest

#: Requests in one script call: it must not hold Redis for long.
MAX_ASKS = 128

#: Seconds between two reports of refusals that concern no permit.
REPORT_PAUSE = 0.1

#: What refusals change unless options say otherwise.
ALWAYS = Learning()


class _Waiting(msgspec.Struct, order=True):
    """A request that waits: by its place, then in order of arrival."""

    place: float
    number: int
    permit: Permit
    granted: asyncio.Future[None]


class SharedLimiter:
    """One endpoint's limits, as one process sees them; requests of one event loop share it.

    Args:
        connection: a connection of its own to shard 0; opened when it is needed first.
        name: the key of the limits, the same in all processes that share them; see `digest`.
        limits: the stated limits; without any, only a learned rate limits.
        learning: what refusals change.
        label: what they are the limits of, in words.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        limits: list[Limit],
        learning: Learning = ALWAYS,
        label: str = "",
    ) -> None:
        self._connection = connection
        self._name = name
        self._limits = limits
        self._learning = learning
        self._label = label
        self._me = f"{socket.gethostname()}-{os.getpid()}-{id(self):x}"
        #: The learned rate that is in force, requests per second; None: none is, as far as this process knows.
        self.learned: float | None = None
        self._waiting: list[_Waiting] = []
        self._arrivals = 0
        self._waited = 0.0
        self._back = [0.0] * (len(limits) + 1)
        self._refused: list[float] = []
        self._window = RequestWindow()
        self._teller = LimitTeller(label)
        self._task: asyncio.Task[None] | None = None

    async def enter(self, patience: float = PERMIT_WAIT, place: float = 0.0, **costs: float) -> Permit:
        """Wait until a request may be sent.

        Args:
            patience: seconds to wait at most.
            place: its place among those that wait in this process, the lowest first: see `turn_in_queue`.
            costs: the request's cost of each limit by name; 1 where not given.

        Raises:
            CallError: `timeout`.
        """
        permit = Permit([costs.get(limit.name, 1.0) for limit in self._limits])
        if self._limits or self.learned is not None:
            await self._wait(permit, patience, place)
        permit.sent = time.monotonic()
        self._window.sent(permit.sent)
        return permit

    async def _wait(self, permit: Permit, patience: float, place: float) -> None:
        granted = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heapq.heappush(self._waiting, _Waiting(place, self._arrivals, permit, granted))
        self._start()
        began = time.monotonic()
        try:
            async with TimeLimit(patience):
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
        finally:
            permit.waited = time.monotonic() - began
            self._waited += permit.waited

    def correct(self, permit: Permit, **used: float) -> None:
        """Report a request's true cost; the next script call passes the difference on.

        Args:
            permit: the request's permit.
            used: its true cost of each limit by name, where that differs from the estimate.
        """
        for i, limit in enumerate(self._limits):
            if limit.name in used:
                self._back[i] += permit.costs[i] - used[limit.name]
                permit.costs[i] = used[limit.name]

    def refused(self, permit: Permit) -> None:
        """Report that the endpoint refused a request because there are too many; the next script call passes it on.

        Args:
            permit: the request's permit.
        """
        if not self._learning.enabled:
            return
        self._window.refused(permit.sent)
        self._refused.append(permit.at)
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
            while self._waiting or self._refused:
                wait = await self._ask()
                if wait:
                    # Spread, so that another process comes first each time; never sooner than Redis said.
                    await asyncio.sleep(wait * random.uniform(1.0, 1.1))
        except GymqError as error:
            for one in self._waiting:
                if not one.granted.done():
                    one.granted.set_exception(CallError("internal", str(error)))
            self._waiting.clear()

    async def _ask(self) -> float:
        """Ask once for all waiting requests, and return the seconds after which to ask again."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < MAX_ASKS:
            one = heapq.heappop(self._waiting)
            if not one.granted.done():
                batch.append(one)
        back, self._back = self._back, [0.0] * len(self._back)
        refused, self._refused = self._refused, []
        waited, self._waited = self._waited, 0.0
        free: FreeRequests | None = None
        if refused and self.learned is None:
            free = self._window.counts(time.monotonic())
        request = PermitRequest(
            self._name,
            self._me,
            self._label,
            self._limits,
            [one.permit.costs for one in batch],
            back,
            len(batch) + len(self._waiting),
            waited,
            self._learning.lowest,
            refused,
            free,
        )
        granted = 0
        try:
            # Sent again after an outage it may take permits twice; the buckets fill again.
            reply = await self._connection.insist(scripts.acquire_permits(request))
            self.learned = reply.learned
            granted = reply.granted
            self._teller.replied(reply, len(batch) - granted + len(self._waiting), time.monotonic())
            for one in batch[:granted]:
                one.permit.at = reply.now
                if one.granted.done():
                    self._give_back(one.permit)
                else:
                    one.granted.set_result(None)
        finally:
            for one in batch[granted:]:
                heapq.heappush(self._waiting, one)
        if granted < len(batch):
            return reply.wait / 1000
        return REPORT_PAUSE if refused and not self._waiting else 0.0


def digest(*parts: str) -> str:
    """Return a name for the limits of an account (address, model, key) from which none of its parts can be read."""
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=16).hexdigest()
