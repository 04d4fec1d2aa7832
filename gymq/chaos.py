"""Faults on purpose: kill and stop the workers of an installation, and measure how long each death is felt.

Victims are found in Redis: workers of this machine that are alive. Only what the registry names can be hit, and only if
it is a worker of gymq's that this user started; whoever supervises them starts them again.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from gymq.call import decode_call
from gymq.keys import Keys
from gymq.link import Link, Outage
from gymq.settings import Settings

Kind = Literal["kill", "stop"]

#: Stopped workers wake up after so many liveness limits: by then they were declared dead, at the latest after 1.5.
ASLEEP = 2.0

#: Seconds between two looks at what a victim held.
LOOK = 0.1

#: Seconds after its waking in which a worker may take mail under its old name.
AFTER = 1.5

#: Seconds after which a fault that is still felt counts as never recovered.
PATIENCE = 120.0

#: What an executor's name begins with; it holds no mail, so it stands in no registry.
_EXECUTOR = "executor"


class Victim(msgspec.Struct, frozen=True):
    """A worker that can be hit.

    Args:
        worker: its name in Redis.
        role: its role.
        pid: its process.
        mailboxes: what it reads; none of an executor's.
    """

    worker: str
    role: str
    pid: int
    mailboxes: tuple[str, ...] = ()


class Fault(msgspec.Struct):
    """One fault.

    Args:
        at: when, in seconds since the epoch.
        kind: `kill` (SIGKILL) or `stop` (SIGSTOP beyond the limit of liveness, then SIGCONT).
        role: of the victim.
        worker: the victim's name in Redis.
        pid: its process.
        held: what it held, a call as `rollout:step:n`, an agent's step as `rollout:version`: seconds until it was answered
            from the fault, or from when it was taken if that was later; or None.
    """

    at: float
    kind: Kind
    role: str
    worker: str
    pid: int
    held: dict[str, float | None] = {}

    @property
    def recovered(self) -> float | None:
        """Seconds until all that it held had been answered; None: not yet, or never."""
        times = [seconds for seconds in self.held.values() if seconds is not None]
        return max(times, default=0.0) if len(times) == len(self.held) else None


class Chaos:
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
        kinds: Collection[Kind] = ("kill", "stop"),
        roles: Collection[str] = (),
        last: bool = True,
        tell: Callable[[Fault], None] | None = None,
    ) -> None:
        self._settings = settings
        self._random = random.Random(seed)
        self._every = every
        self._kinds = sorted(kinds)
        self._roles = roles
        self._last = last
        self._tell = tell or (lambda fault: None)
        self._link = Link(settings, "gymq-chaos")
        self._watches: set[asyncio.Task[None]] = set()
        self.faults: list[Fault] = []

    async def run(self, stop: asyncio.Event) -> list[Fault]:
        """Go on until told to stop, then wait until what is felt is over; whoever was stopped is woken in any case."""
        await self._link.connect()
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
            await self._link.close()

    async def _try(self) -> None:
        try:
            found = await victims(self._link, self._roles)
            alone = {role for role in {one.role for one in found} if sum(one.role == role for one in found) == 1}
            found = [one for one in found if self._last or one.role not in alone]
            if found:
                # The role first: else the role with the most workers would be hit the most.
                role = self._random.choice(sorted({one.role for one in found}))
                victim = self._random.choice([one for one in found if one.role == role])
                await self._hit(victim, self._random.choice(self._kinds))
        except Outage:
            await self._link.reconnect()

    async def _hit(self, victim: Victim, kind: Kind) -> None:
        fault = Fault(time.time(), kind, victim.role, victim.worker, victim.pid)
        with suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
            self.faults.append(fault)
            watch = asyncio.create_task(self._watch(victim, fault))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)

    async def _watch(self, victim: Victim, fault: Fault) -> None:
        link = Link(self._settings, "gymq-chaos-watch")
        try:
            await link.connect()
            # A read that waited in the server may still be given mail; what is held now is held until it is handed back.
            await asyncio.sleep(LOOK)
            fault.held = dict.fromkeys(sorted(await held(link, victim)))
            waiting = set(fault.held)
            since = dict.fromkeys(waiting, fault.at)
            self._tell(fault)
            awake = fault.kind != "stop"
            until = fault.at + ASLEEP * self._settings.liveness + AFTER if fault.kind == "stop" else 0.0
            while waiting or time.time() < until:
                passed = time.time() - fault.at
                if fault.kind == "stop":
                    # A read that waited in the server, or the first one after it woke, may still be given mail under its name.
                    new = await held(link, victim) - fault.held.keys()
                    fault.held |= dict.fromkeys(sorted(new))
                    since |= dict.fromkeys(new, time.time())
                    waiting |= new
                if not awake and passed >= ASLEEP * self._settings.liveness:
                    awake = True
                    _wake(victim.pid)
                if passed > PATIENCE:
                    return
                left = await unanswered(link, waiting)
                for one in waiting - left:
                    fault.held[one] = round(time.time() - since[one], 2)
                waiting = left
                await asyncio.sleep(LOOK)
            if fault.held:
                self._tell(fault)
        except Outage:
            return  # Redis went away meanwhile: this fault cannot be told from that one
        finally:
            if fault.kind == "stop":
                _wake(victim.pid)
            await link.close()


def _wake(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


async def victims(link: Link, roles: Collection[str] = ()) -> list[Victim]:
    """The workers of this machine and this user that are alive, in the order of their names.

    Args:
        link: a connection.
        roles: only of these; all if empty.

    Raises:
        Outage: the connection broke.
    """
    keys = link.keys
    flat = await link.send("HGETALL", keys.workers)
    found: list[Victim] = []
    for name, info in zip(flat[::2], flat[1::2], strict=True):
        if not info.startswith(b"dead"):
            told: dict[str, Any] = msgspec.json.decode(info)
            if told["host"] == socket.gethostname():
                found.append(Victim(name.decode(), told["role"], told["pid"], tuple(told["mailboxes"])))
    prefix = keys.alive(f"{_EXECUTOR}-{socket.gethostname()}-")
    async for key in _scan(link, f"{prefix}*"):
        pid, _, _ = key.removeprefix(prefix).partition("-")
        if pid.isdigit():
            found.append(Victim(key.removeprefix(keys.alive("")), _EXECUTOR, int(pid)))
    wanted = sorted((one for one in found if not roles or one.role in roles), key=lambda one: one.worker)
    signs = await link.send("MGET", *[keys.alive(one.worker) for one in wanted]) if wanted else []
    return [one for one, sign in zip(wanted, signs, strict=True) if sign is not None and _ours(one.pid)]


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


async def _scan(link: Link, pattern: str) -> AsyncIterator[str]:
    cursor: Any = 0
    while True:
        cursor, some = await link.send("SCAN", cursor, "MATCH", pattern.replace("[", "\\["), "COUNT", 1000)
        for key in some:
            yield key.decode()
        if int(cursor) == 0:
            return


async def held(link: Link, victim: Victim) -> set[str]:
    """What a worker holds: calls as `rollout:step:n`, an agent's steps as `rollout:version`.

    Raises:
        Outage: the connection broke.
    """
    found: set[str] = set()
    if victim.role == _EXECUTOR:
        flat = await link.send("HGETALL", link.keys.isolated)
        for call, executor in zip(flat[::2], flat[1::2], strict=True):
            if executor.decode() == victim.worker:
                found.add(call.decode())
        return found
    for box in victim.mailboxes:
        for stream in (link.keys.mailbox(box), link.keys.retry(box), link.keys.alone(box)):
            for entry in await link.send("XPENDING", stream, Keys.GROUP, "-", "+", 10_000, victim.worker):
                for _, fields in await link.send("XRANGE", stream, entry[0], entry[0]):
                    if fields[0] == b"c":
                        found.add(decode_call(fields[1]).id)
                    else:
                        found.add(f"{fields[1].decode()}:{int(fields[3])}")
    return found


async def unanswered(link: Link, waiting: Collection[str]) -> set[str]:
    """Those of some calls and steps that are still to be answered or done.

    Raises:
        Outage: the connection broke.
    """
    left: set[str] = set()
    for one in waiting:
        rollout, step, *n = one.split(":")
        if n:
            if await link.send("HEXISTS", link.keys.rollout(rollout), f"c{step}.{n[0]}"):
                left.add(one)
        else:
            version = await link.send("HGET", link.keys.rollout(rollout), "v")
            if version is not None and int(version) <= int(step):
                left.add(one)
    return left
