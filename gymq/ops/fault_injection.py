"""Faults on purpose: kill and stop the workers of an installation, and measure how long each death is felt.

Victims are found in Redis: workers of this machine that are alive. Only what the registry names can be hit, and only if
it is a worker of gymq's that this user started; whoever supervises them starts them again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from gymq.celery.queues import EXECUTOR
from gymq.errors import GymqError, ServerUnreachable
from gymq.settings import Settings
from gymq.store.connection import Connection, Outage
from gymq.store.keys import Keys
from gymq.store.sharded import Shards
from gymq.store.worker_registry import live_executors, live_workers
from gymq.wire.calls import decode_call
from gymq.wire.ids import RolloutId

FaultAction = Literal["kill", "stop"]

#: Stopped workers wake up after so many liveness limits: by then they were declared dead, at the latest after 1.5.
ASLEEP = 2.0

#: Seconds between two looks at what a victim held.
POLL_INTERVAL = 0.1

#: Seconds after its waking in which a worker may take mail under its old name.
AFTER = 1.5

#: Seconds after which a fault that is still felt counts as never recovered.
RECOVERY_LIMIT = 120.0


class Victim(msgspec.Struct, frozen=True):
    """A process that can be hit.

    Args:
        role: its role.
        pid: its process.
        workers: its names in Redis, one for each shard that it is alive on; an executor has the same on all.
        mailboxes: what it reads; none of an executor's.
        quarantine: it serves suspects only.
    """

    role: str
    pid: int
    workers: tuple[str, ...]
    mailboxes: tuple[str, ...] = ()
    quarantine: bool = False


class InjectedFault(msgspec.Struct):
    """One fault.

    Args:
        at: when, in seconds since the epoch.
        kind: `kill` (SIGKILL) or `stop` (SIGSTOP beyond the limit of liveness, then SIGCONT).
        role: of the victim.
        workers: the victim's names in Redis, one for each shard.
        pid: its process.
        held: what it held, a call as `rollout:step:n`, an agent's step as `rollout:version`: seconds until it was answered
            from the fault, or from when it was taken if that was later; or None.
    """

    at: float
    kind: FaultAction
    role: str
    workers: tuple[str, ...]
    pid: int
    held: dict[str, float | None] = {}

    @property
    def recovered(self) -> float | None:
        """Seconds until all that it held had been answered; None: not yet, or never."""
        times = [seconds for seconds in self.held.values() if seconds is not None]
        return max(times, default=0.0) if len(times) == len(self.held) else None


class FaultInjector:
    """Hits workers at random moments.

    Args:
        settings: where Redis is, and the limit of liveness.
        seed: decides who is hit, when and how, as far as the same workers are there.
        every: mean seconds between two faults; each pause is between two thirds and four thirds of it.
        kinds: what is done to them.
        roles: whose workers; all of them if empty.
        last: also hit the only worker of a role that is alive.
        tell: told of each fault as it happens and as it is over.
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
        self._shards = Shards(settings, "gymq-chaos")
        self._watches: set[asyncio.Task[None]] = set()
        self.faults: list[InjectedFault] = []

    async def run(self, stop: asyncio.Event) -> list[InjectedFault]:
        """Go on until told to stop, then wait until what is felt is over; whoever was stopped is woken in any case."""
        await self._shards.connect()
        try:
            while not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._every * self._random.uniform(2 / 3, 4 / 3))
                    break
                await self._try()
            await asyncio.gather(*self._watches)
            return self.faults
        finally:
            for task in list(self._watches):
                task.cancel()
            await asyncio.gather(*self._watches, return_exceptions=True)
            await self._shards.close()

    async def _try(self) -> None:
        try:
            found = await victims(self._shards, self._roles)
            workers = Counter(one.role for one in found if not one.quarantine)
            found = [one for one in found if self._last or one.quarantine or workers[one.role] > 1]
            if found:
                # The role first: else the role with the most workers would be hit the most.
                role = self._random.choice(sorted({one.role for one in found}))
                victim = self._random.choice([one for one in found if one.role == role])
                await self._hit(victim, self._random.choice(self._kinds))
        except Outage:
            await self._shards.reconnect()

    async def _hit(self, victim: Victim, kind: FaultAction) -> None:
        fault = InjectedFault(time.time(), kind, victim.role, victim.workers, victim.pid)
        with suppress(ProcessLookupError):
            # Stopped in either case: what it holds must not change between the look and the kill.
            os.kill(victim.pid, signal.SIGSTOP)
            try:
                if kind == "kill":
                    fault.held = dict.fromkeys(sorted(await held(self._shards, victim)))
            finally:
                if kind == "kill":
                    os.kill(victim.pid, signal.SIGKILL)
            self.faults.append(fault)
            watch = asyncio.create_task(self._watch(victim, fault))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)

    async def _watch(self, victim: Victim, fault: InjectedFault) -> None:
        try:
            async with Shards(self._settings, "gymq-chaos-watch") as shards:
                # A read that waits in the server may still be given mail, until the connection of the dead is gone.
                await asyncio.sleep(POLL_INTERVAL)
                fault.held |= dict.fromkeys(sorted(await held(shards, victim) - fault.held.keys()))
                waiting = set(fault.held)
                since = dict.fromkeys(waiting, fault.at)
                self._tell(fault)
                awake = fault.kind != "stop"
                until = fault.at + ASLEEP * self._settings.liveness + AFTER if fault.kind == "stop" else 0.0
                while waiting or time.time() < until:
                    passed = time.time() - fault.at
                    if fault.kind == "stop":
                        # A read that waited, or the first one after the wake, may still be given mail under its name.
                        new = await held(shards, victim) - fault.held.keys()
                        fault.held |= dict.fromkeys(sorted(new))
                        since |= dict.fromkeys(new, time.time())
                        waiting |= new
                    if not awake and passed >= ASLEEP * self._settings.liveness:
                        awake = True
                        _wake(victim.pid)
                    if passed > RECOVERY_LIMIT:
                        return
                    left = await unanswered(shards, waiting)
                    for one in waiting - left:
                        fault.held[one] = round(time.time() - since[one], 2)
                    waiting = left
                    await asyncio.sleep(POLL_INTERVAL)
                if fault.held:
                    self._tell(fault)
        except (Outage, ServerUnreachable):
            return  # Redis went away meanwhile: this fault cannot be told from that one
        finally:
            if fault.kind == "stop":
                _wake(victim.pid)


def _wake(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


async def victims(shards: Shards, roles: Collection[str] = ()) -> list[Victim]:
    """The processes of this machine and this user that are alive, by role and pid.

    Args:
        shards: the connections.
        roles: only of these; all if empty.

    Raises:
        Outage: a connection broke.
    """
    found: dict[tuple[str, int], Victim] = {}
    for one in [one for some in await shards.each(_alive) for one in some]:
        if _ours(one.pid) and (not roles or one.role in roles):
            before = found.get((one.role, one.pid))
            names = dict.fromkeys((before.workers if before else ()) + one.workers)
            found[one.role, one.pid] = msgspec.structs.replace(one, workers=tuple(names))
    return [found[place] for place in sorted(found)]


async def _alive(connection: Connection) -> list[Victim]:
    host = socket.gethostname()
    found = [
        Victim(entry.role, entry.pid, (name,), tuple(entry.mailboxes), entry.quarantine)
        for name, entry in (await live_workers(connection)).items()
        if entry.host == host
    ]
    prefix = f"{EXECUTOR}-{host}-"
    for name in await live_executors(connection):
        pid = name.removeprefix(prefix).partition("-")[0]
        if name.startswith(prefix) and pid.isdigit():
            found.append(Victim(EXECUTOR, int(pid), (name,)))
    return found


def _ours(pid: int) -> bool:
    """Whether a process is a running worker of this user: names in Redis may outlive their process, and pids come again."""
    try:
        place = Path(f"/proc/{pid}")
        if not place.parent.joinpath("self").exists():
            os.kill(pid, 0)  # no /proc here: then it must do that signals may be sent to it
            return True
        state = place.joinpath("stat").read_text().rpartition(")")[2].split()[0]
        line = place.joinpath("cmdline").read_bytes()
        return place.stat().st_uid == os.getuid() and state not in "TZ" and (b"gymq" in line or b"celery" in line)
    except OSError:
        return False


async def held(shards: Shards, victim: Victim) -> set[str]:
    """What a process holds: calls as `rollout:step:n`, an agent's steps as `rollout:version`.

    Raises:
        Outage: a connection broke.
    """
    look = _begun if victim.role == EXECUTOR else _pending
    return {one for some in await shards.each(lambda connection: look(connection, victim)) for one in some}


async def _begun(connection: Connection, victim: Victim) -> set[str]:
    flat = await connection.send("HGETALL", connection.keys.isolated)
    return {call.decode() for call, who in zip(flat[::2], flat[1::2], strict=True) if who.decode() in victim.workers}


async def _pending(connection: Connection, victim: Victim) -> set[str]:
    found: set[str] = set()
    keys = connection.keys
    streams = [key(box) for box in victim.mailboxes for key in (keys.mailbox, keys.retry, keys.suspects)]
    pairs = [
        *itertools.product(streams, victim.workers),
        *((keys.private_mailbox(worker), worker) for worker in victim.workers),
    ]
    for stream, worker in pairs:
        try:
            entries = await connection.send("XPENDING", stream, Keys.GROUP, "-", "+", 10_000, worker)
        except GymqError:
            continue  # nobody has read it yet
        for entry in entries:
            for _, fields in await connection.send("XRANGE", stream, entry[0], entry[0]):
                found.add(name(fields))
    return found


def name(fields: list[bytes]) -> str:
    """What mail is called here: a call as `rollout:step:n`, an agent's step as `rollout:version`.

    Args:
        fields: the mail's.
    """
    return f"{fields[1].decode()}:{int(fields[3])}" if fields[0] == b"r" else decode_call(fields[1]).id


async def unanswered(shards: Shards, waiting: Collection[str]) -> set[str]:
    """Those of some calls and steps that are still to be answered or done.

    Raises:
        Outage: a connection broke.
    """
    left: set[str] = set()
    for one in waiting:
        rollout, step, *n = one.split(":")
        connection = shards.connections[RolloutId.parse(rollout).shard(len(shards.connections))]
        if n:
            if await connection.send("HEXISTS", connection.keys.rollout(rollout), f"c{step}.{n[0]}"):
                left.add(one)
        else:
            version = await connection.send("HGET", connection.keys.rollout(rollout), "v")
            if version is not None and int(version) <= int(step):
                left.add(one)
    return left
