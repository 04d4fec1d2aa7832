"""Faults on purpose: kill and stop the workers of an installation, and measure how long each fault is felt.

Only `gymq.ops.victims` are hit; their supervisor starts them again.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Literal

import msgspec

from gymq.errors import ServerUnreachable
from gymq.ops.victims import Victim, held, unanswered, victims
from gymq.settings import Settings
from gymq.store.connection import Outage
from gymq.store.sharded import Shards

FaultAction = Literal["kill", "stop"]

#: Liveness limits after which a stopped worker is woken: it was declared dead by then, at the latest after 1.5.
STOP_LIMITS = 2.0

#: Seconds between two looks at what a victim held.
POLL_INTERVAL = 0.1

#: Seconds after its waking in which a worker may take messages under its old name.
WAKE_MARGIN = 1.5

#: Seconds after which a fault that is still felt counts as never recovered.
RECOVERY_LIMIT = 120.0


class InjectedFault(msgspec.Struct):
    """A fault, and what came of it.

    Args:
        at: seconds since the epoch.
        kind: `kill` (SIGKILL) or `stop` (SIGSTOP beyond the limit of liveness, then SIGCONT).
        role: the victim's role.
        workers: the victim's names in Redis, one for each shard.
        pid: the victim's process.
        held: the work items that it held, each with the seconds until it was answered, from the fault, or from when it was
            taken if that was later; None: not answered.
    """

    at: float
    kind: FaultAction
    role: str
    workers: tuple[str, ...]
    pid: int
    held: dict[str, float | None] = {}

    @property
    def recovered(self) -> float | None:
        """Seconds until everything that the victim held was answered; None: not yet, or never."""
        times = [seconds for seconds in self.held.values() if seconds is not None]
        return max(times, default=0.0) if len(times) == len(self.held) else None


class FaultInjector:
    """Injects faults at random moments.

    Args:
        settings: where Redis is, and the limit of liveness.
        seed: decides victims, moments and actions, as far as the same workers are there.
        every: mean seconds between two faults; each pause is between two thirds and four thirds of it.
        kinds: the actions.
        roles: the roles whose workers are hit; all if empty.
        last: whether the only live worker of a role is hit too.
        tell: called with each fault as it happens, and as it is over.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        seed: int,
        every: float,
        kinds: Collection[FaultAction] = ("kill", "stop"),
        roles: Collection[str] = (),
        last: bool = True,
        tell: Callable[[InjectedFault], None] | None = None,
    ) -> None:
        self._settings = settings
        self._random = random.Random(seed)
        self._every = every
        self._kinds = sorted(kinds)
        self._roles = roles
        self._last = last
        self._tell = tell or (lambda fault: None)
        self._watches: set[asyncio.Task[None]] = set()
        self.faults: list[InjectedFault] = []

    async def run(self, stop: asyncio.Event) -> list[InjectedFault]:
        """Inject faults until told to stop, and wait until none is felt any more; stopped workers are woken in any case."""
        async with Shards(self._settings, "gymq-chaos") as shards:
            try:
                while not stop.is_set():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), self._every * self._random.uniform(2 / 3, 4 / 3))
                        break
                    await self._try(shards)
                await asyncio.gather(*self._watches)
                return self.faults
            finally:
                for task in list(self._watches):
                    task.cancel()
                await asyncio.gather(*self._watches, return_exceptions=True)

    async def _try(self, shards: Shards) -> None:
        try:
            candidates = await victims(shards, self._roles)
            workers = Counter(victim.role for victim in candidates if not victim.quarantine)
            candidates = [v for v in candidates if self._last or v.quarantine or workers[v.role] > 1]
            if candidates:
                # The role first: else the role with the most workers would be hit the most.
                role = self._random.choice(sorted({victim.role for victim in candidates}))
                victim = self._random.choice([victim for victim in candidates if victim.role == role])
                await self._hit(shards, victim, self._random.choice(self._kinds))
        except Outage:
            await shards.reconnect()

    async def _hit(self, shards: Shards, victim: Victim, kind: FaultAction) -> None:
        fault = InjectedFault(time.time(), kind, victim.role, victim.workers, victim.pid)
        with suppress(ProcessLookupError):
            # Stopped in either case: what it holds must not change between the look and the kill.
            os.kill(victim.pid, signal.SIGSTOP)
            if kind == "kill":
                try:
                    fault.held = dict.fromkeys(sorted(await held(shards, victim)))
                finally:
                    os.kill(victim.pid, signal.SIGKILL)
            self.faults.append(fault)
            watch = asyncio.create_task(self._watch(victim, fault))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)

    async def _watch(self, victim: Victim, fault: InjectedFault) -> None:
        stopped = fault.kind == "stop"
        wake_at = fault.at + STOP_LIMITS * self._settings.liveness
        try:
            async with Shards(self._settings, "gymq-chaos-watch") as shards:
                # A read that waits in the server may still be given messages, until the connection of the dead is gone.
                await asyncio.sleep(POLL_INTERVAL)
                fault.held |= dict.fromkeys(sorted(await held(shards, victim) - fault.held.keys()))
                waiting = set(fault.held)
                taken_at = dict.fromkeys(waiting, fault.at)
                self._tell(fault)
                awake = not stopped
                while waiting or (stopped and time.time() < wake_at + WAKE_MARGIN):
                    if stopped:
                        # A read that waited, or the first one after the wake, may still be given messages under its name.
                        new = await held(shards, victim) - fault.held.keys()
                        fault.held |= dict.fromkeys(sorted(new))
                        taken_at |= dict.fromkeys(new, time.time())
                        waiting |= new
                    if not awake and time.time() >= wake_at:
                        awake = True
                        _wake(victim.pid)
                    if time.time() > fault.at + RECOVERY_LIMIT:
                        return
                    left = await unanswered(shards, waiting)
                    for item in waiting - left:
                        fault.held[item] = round(time.time() - taken_at[item], 2)
                    waiting = left
                    await asyncio.sleep(POLL_INTERVAL)
                if fault.held:
                    self._tell(fault)
        except (Outage, ServerUnreachable):
            return  # Redis went away meanwhile: this fault cannot be told from that one
        finally:
            if stopped:
                _wake(victim.pid)


def _wake(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
