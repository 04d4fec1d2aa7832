"""The life of an actor: take mail, do the work, reply, stay alive, hand back the mail of the dead.

A role subclasses `Actor` and says what to do with mail. An actor takes no more than it can start now, so all that it
holds counts as started. Whatever it does to Redis may be done twice without harm: a commit is checked against the
rollout's version, a reply against the pending call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any

import msgspec

from gymq.aio import cancel_and_wait
from gymq.errors import ServerUnreachable, one_line
from gymq.observe.activity import recorder
from gymq.observe.events import Draining, Lapsed, MailParked, WorkerLeft, WorkerReady, emit
from gymq.observe.metrics import WorkerGauges
from gymq.runtime import newer_mail
from gymq.runtime.announcement import announced
from gymq.runtime.blame import is_on_mail
from gymq.runtime.intake import Intake
from gymq.runtime.mailbox import Mail, Mailboxes
from gymq.runtime.membership import Membership
from gymq.runtime.outage_watch import outlasted
from gymq.runtime.quarantines import MOST, Quarantines
from gymq.runtime.service_times import ServiceTimes
from gymq.runtime.worker_host import EVENT_LIMIT, Event, RoleOptions
from gymq.settings import Settings
from gymq.store.connection import OUTAGE_LIMIT, Connection, Outage, ServerFull, pause
from gymq.store.sharded import check
from gymq.store.worker_registry import WorkerEntry
from gymq.wire.activity import InWork
from gymq.wire.calls import SCHEMA

#: Seconds between two sweeps: looks at the registry, at suspects, and at what the role does besides its mail.
SWEEP = 1.0

#: Seconds that a draining actor waits for what it holds; then it hands the rest back.
DRAIN = 25.0

#: Seconds that a role may take to close what it has open while Redis is away.
CLOSE_LIMIT = 2.0

#: Seconds between two looks at whether a draining actor still holds mail.
DRAIN_POLL = 0.02


class Actor:
    """Base of the roles: it works on one shard.

    Args:
        settings: where Redis is, which shard is meant, and the times that all processes share.
        options: the options of the role's command line.
        capacity: messages that the process holds at most; the actors of its shards share them evenly.
        suspects_only: serve suspects, one at a time, as `gymq.runtime.quarantine_main` does.
    """

    role = ""

    #: Whether it needs to know since when other mailboxes have been served.
    reads_times = False

    #: Whether it has a private mailbox, to which agents send mail about what it has in memory.
    private = False

    def __init__(self, settings: Settings, options: RoleOptions, *, capacity: int = 256, suspects_only: bool = False) -> None:
        self.settings = settings
        self.options = options
        self.suspects_only = suspects_only
        self.events: deque[Event] = deque(maxlen=EVENT_LIMIT)
        self.host = socket.gethostname()
        self.counts: dict[str, int] = {"stale": 0, "lapses": 0, "parked": 0}
        self.reader = Connection(settings, f"gymq-{self.role}-reader")
        self.connection = Connection(settings, f"gymq-{self.role}")
        private = self.private and not suspects_only
        names = self.mailboxes()
        self.boxes = Mailboxes(names, self.connection.keys, suspects_only=suspects_only, private=private)
        self.quarantines = None if suspects_only else Quarantines(self.role, settings, options, self.most_quarantines())
        entry = WorkerEntry(self.role, self.host, os.getpid(), names, suspects_only, time.time())
        self._starting = msgspec.structs.replace(entry, mailboxes=[], starting=names)
        self._recorder = recorder()
        self.times = ServiceTimes()
        self.life = Membership(settings, Connection(settings, f"gymq-{self.role}-alive"), entry, private)
        share = 1 if suspects_only else -(-capacity // self.connection.shards)
        self.intake = Intake(self.role, self.boxes, self.reader, self.life, share, self.handle, self.forget)
        #: Coroutines that belong to what is held.
        self.tasks: set[asyncio.Task[None]] = set()
        self._awake = asyncio.Event()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._to_blame = False

    # What a role says.

    def mailboxes(self) -> list[str]:
        """Return the names of the mailboxes that it reads."""
        raise NotImplementedError

    def most_quarantines(self) -> int:
        """Return how many quarantines it may have at once."""
        return MOST

    async def prepare(self) -> None:
        """Open what the work needs; mail is taken only afterwards."""

    async def handle(self, mail: list[Mail]) -> None:
        """Work on a batch of mail; each message is given to `release` when it is acknowledged."""
        raise NotImplementedError

    async def duties(self) -> None:
        """Do what the role does once per sweep besides its mail."""

    async def forget(self) -> None:
        """Drop what was read: it may have gone on elsewhere, or Redis may have been rolled back."""

    async def close(self) -> None:
        """Close what `prepare` opened."""

    def in_work(self) -> dict[str, InWork]:
        """Return the calls in work by kind, for the activity of its process."""
        return {}

    @classmethod
    def on_shards(cls, settings: list[Settings], options: RoleOptions) -> list[Actor]:
        """Make an actor for each of several shards, with what they share in a process.

        Args:
            settings: of each.
            options: the options of the role's command line.
        """
        return [cls(one, options) for one in settings]

    # What other threads call: a `WorkerHost`.

    def drain(self) -> None:
        """Take no more mail; `main` returns when what is held is finished or handed back."""
        if not self.intake.closed:
            emit(Draining(self.role, self.worker, len(self.intake.held)))
        self.intake.closed = True
        self.wake()

    def stop(self) -> None:
        """Hand back what is held, now."""
        self.intake.closed = self._stopped = True
        self.wake()

    def wake(self) -> None:
        """Sweep now: something that is looked at there has changed."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._awake.set)

    def stats(self) -> dict[str, Any]:
        """Return the numbers for `celery inspect stats`."""
        held, draining = len(self.intake.held), self.intake.closed
        return {
            "role": self.role,
            "worker": self.worker,
            "held": held,
            "draining": draining,
            **self.counts,
            **self.intake.counts,
        }

    def gauges(self) -> WorkerGauges:
        """Return what it has in hand now."""
        taking = bool(self.worker) and not self.intake.closed and not self.intake.on_hold
        return WorkerGauges(self.role, len(self.intake.held), self.intake.capacity, taking)

    # What a role calls, on the loop.

    @property
    def worker(self) -> str:
        """The name of this incarnation, by which Redis knows what it holds."""
        return self.life.worker

    @property
    def failure(self) -> BaseException | None:
        """The error with which the process ends, once there is one."""
        return self._failure

    def leave(self, error: BaseException, *, at_once: bool = True, to_blame: bool = False) -> None:
        """End the process with an error; the first one counts.

        Args:
            error: the reason.
            at_once: hand back what is held now; False: finish it first, as in `drain`.
            to_blame: what is held may have caused the error, so that handing it back counts as a death.
        """
        if self._failure is None:
            self._failure, self._to_blame = error, to_blame
        self.intake.closed = True
        self._stopped |= at_once
        self.intake.recheck()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that belongs to what is held; it is cancelled when the actor lapses."""
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[None]) -> None:
        """Forget a task; if it failed, that is a defect of gymq, not of a user's code, and the process ends."""
        self.tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.leave(failure, to_blame=is_on_mail(failure))

    async def park(self, mail: list[Mail], schemas: list[int]) -> None:
        """Put mail aside that this worker is too old to read; newer ones take it up.

        Args:
            mail: the messages.
            schemas: of each.
        """
        if not self.counts["parked"]:
            emit(MailParked(self.role, max(schemas), SCHEMA))
        self.counts["parked"] += len(mail)
        await newer_mail.park(self.connection, self.boxes, mail, schemas)
        for message in mail:
            self.intake.release(message)

    # The life.

    async def main(self) -> None:
        """Live until drained or stopped; an exception means that the process must end.

        Raises:
            ServerUnreachable: Redis was away when the actor was to end.
        """
        self._loop = asyncio.get_running_loop()
        if not await self._connect():
            return
        life = asyncio.create_task(self._live())
        watch = asyncio.create_task(outlasted(self.life.connection, lambda: self.intake.closed))
        try:
            await asyncio.wait((life, watch), return_when=asyncio.FIRST_COMPLETED)
            if not life.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_LIMIT):
                        await cancel_and_wait([life])
                reason = f"Redis has been away for {OUTAGE_LIMIT:g} s; other workers take up what this one held"
                emit(WorkerLeft(self.role, self.worker, 0, reason))
                raise ServerUnreachable(reason)
            life.result()
        finally:
            life.cancel()
            await cancel_and_wait([watch] if watch.done() else [life, watch])

    async def _live(self) -> None:
        async with announced(self.settings, self.life.connection, self._starting):
            await self.prepare()
        await self.boxes.create(self.connection)
        await self._begin()
        background = [asyncio.create_task(job()) for job in (self.intake.run, self._renew, self._sweep)]
        try:
            done, _ = await asyncio.wait(background, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                # Handed back by itself, at once, and with the blame where it belongs: others could only count a death.
                if (failure := task.exception()) is not None:
                    self.leave(failure, to_blame=is_on_mail(failure))
            await self._finish()
        finally:
            await cancel_and_wait(background)
            await self.close()
            for connection in (self.reader, self.connection, self.life.connection):
                await connection.close()

    async def _connect(self) -> bool:
        """Open the connections; False: asked to end while one shard of several was away."""
        while True:
            try:
                for connection in (self.reader, self.connection, self.life.connection):
                    await connection.connect()
                await check(self.connection)
                return True
            except (ServerUnreachable, Outage) as error:
                # The actors of the other shards must not wait for this one.
                if self.connection.shards == 1 or self.suspects_only:
                    raise ServerUnreachable(str(error)) from None
                if self.intake.closed:
                    return False
                self.connection.tell_outage(error)
                await pause()

    async def _begin(self) -> None:
        """Enter the registry, and tell it."""
        await self.life.begin()
        emit(WorkerReady(self.role, self.worker, self.boxes.names, self.connection.address.place))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.settings.liveness / 3)
            if not await self.life.renew():
                self.counts["lapses"] += 1
                emit(Lapsed(self.role, self.worker, self.settings.liveness, len(self.intake.held)))
                for task in list(self.tasks):
                    task.cancel()
                self.intake.release_all()
                await self.forget()
                await self._begin()
            with contextlib.suppress(Outage, ServerFull):  # the next heartbeat tells it
                await self.life.tell_activity(self._recorder.activity(self.in_work()))

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), SWEEP)
            self._awake.clear()
            self.intake.recheck()
            try:
                await self.tell_time()
                suspects_wait = await self.life.sweep()
                if self.quarantines is not None:
                    await self.quarantines.look(0 if self.intake.closed else suspects_wait)
                if not self.intake.closed:
                    await newer_mail.unpark(self.life.connection, self.boxes)
                await self.duties()
            except Outage:
                await self.life.recover()
            except ServerFull:
                pass  # the next sweep tries again

    async def tell_time(self) -> None:
        """Say that the mailboxes are served, and learn the server's time."""
        await self.times.look(self.life.connection, [] if self.suspects_only else self.boxes.names, self.reads_times)

    async def _finish(self) -> None:
        """Wait for what is held after the last read, hand back the rest, leave the registry."""
        await self.life.shut()
        limit = time.monotonic() + DRAIN
        while self.intake.held and not self._stopped and time.monotonic() < limit:
            await asyncio.sleep(DRAIN_POLL)
        for task in list(self.tasks):
            task.cancel()
        handed_back = await self.life.leave(broken=self._to_blame)
        emit(WorkerLeft(self.role, self.worker, handed_back, "" if self._failure is None else one_line(str(self._failure))))
        if self.quarantines is not None:
            await self.quarantines.end()
        if self._failure is not None:
            raise self._failure
