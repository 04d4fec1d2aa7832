"""The life of an actor: take mail, do the work, reply, stay alive, look after the dead.

A role subclasses `Actor` and says what to do with mail. An actor takes no more than it can start now, so all that it
holds counts as started. Whatever it does to Redis may be done twice without harm: a commit is checked against the
rollout's version, a reply against the pending call.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
import time
from collections import deque
from typing import Any

from gymq.aio import cancel_and_wait
from gymq.errors import GymqError, ServerUnreachable
from gymq.runtime.mailbox import Mail, Mailboxes, MailboxGone
from gymq.runtime.membership import Membership
from gymq.runtime.quarantine import Quarantine
from gymq.settings import Settings
from gymq.store.batching import pack
from gymq.store.connection import RECONNECT_PAUSE, Connection, Outage, ServerFull
from gymq.store.sharded import check
from gymq.store.worker_registry import WorkerEntry
from gymq.wire.calls import SCHEMA

#: Seconds between two looks at the dead.
SWEEP = 1.0

#: Seconds between two looks at whether the worker was renewed, once it may have been declared dead.
SURE_PAUSE = 0.01

#: Messages of a newer schema that one script puts aside or takes up.
PARK_BATCH = 100

#: Seconds that a draining actor waits for what it holds; then it hands the rest back.
DRAIN = 25.0

#: Celery events that wait to be sent; older ones are dropped first when nobody drains them.
EVENTS = 10_000

#: Seconds that Python lets one thread run while another waits for the interpreter. Its default, 5 ms, is what the actor's
#: loop would wait each time after Celery's main thread or a tool's thread got hold of it.
SWITCH_INTERVAL = 5e-4

#: New objects between two collections, and collections between two of older objects. With the usual 700 a busy loop
#: spends a quarter of its time on looking at thousands of conversations that are all alive.
GC_THRESHOLD = (20_000, 20, 50)


class Actor:
    """Base of the roles: it works on one shard.

    Args:
        settings: where Redis is, which shard is meant, and the times that all processes share.
        options: the options of the role's command line.
    """

    role = ""

    #: Whether it has a private mailbox, to which agents send what it knows already.
    private = False

    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self.settings = settings
        self.options = options
        self.events: deque[tuple[str, dict[str, Any]]] = deque(maxlen=EVENTS)
        self.host = socket.gethostname()
        self.capacity = 256
        #: Whether to wait at the start for a shard that is away.
        self.patient = False
        self.counts: dict[str, int] = {"taken": 0, "redelivered": 0, "stale": 0, "lapses": 0, "outages": 0, "parked": 0}
        self._held: dict[tuple[bytes, bytes], Mail] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._awake = asyncio.Event()
        self._draining = False
        self._stopped = False
        self._on_hold = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._to_blame = True  # whether what is held may be, for the failure
        self.reader = Connection(settings, f"gymq-{self.role}-reader")
        self.connection = Connection(settings, f"gymq-{self.role}")
        self.boxes = Mailboxes(self.mailboxes(), self.connection.keys, private=self.private)
        self.quarantine: Quarantine | None = Quarantine(self.role, settings, options)
        self.life = Membership(settings, Connection(settings, f"gymq-{self.role}-alive"), self._entry(), self.private)

    def isolate(self) -> None:
        """Before `main`: serve suspects and nothing else, one at a time; see `gymq.runtime.quarantine_main`."""
        self.capacity = 1
        self.boxes = Mailboxes(self.mailboxes(), self.connection.keys, alone=True)
        self.quarantine = None
        self.life = Membership(self.settings, self.life.connection, self._entry())

    # What a role says.

    def mailboxes(self) -> list[str]:
        """The names of the mailboxes it reads."""
        raise NotImplementedError

    async def prepare(self) -> None:
        """Open what the work needs; mail is taken only afterwards."""

    async def handle(self, mail: list[Mail]) -> None:
        """Work on a batch of mail; each message is given to `release` when it is acknowledged."""
        raise NotImplementedError

    async def duties(self) -> None:
        """What the role does once per sweep besides its mail."""

    async def forget(self) -> None:
        """Drop what was read: it may have gone on elsewhere, or Redis may have been rolled back."""

    async def close(self) -> None:
        """Close what `prepare` opened."""

    @classmethod
    def on_shards(cls, settings: list[Settings], options: dict[str, Any]) -> list[Actor]:
        """Make an actor for each of several shards; what a process has once they share.

        Args:
            settings: of each.
            options: the options of the role's command line.
        """
        return [cls(one, options) for one in settings]

    # What Celery's side calls, from other threads.

    def drain(self) -> None:
        """Take no more mail; `main` returns when what is held is finished or handed back."""
        self._draining = True
        self._poke()

    def stop(self) -> None:
        """Hand back what is held, now."""
        self._draining = self._stopped = True
        self._poke()

    def wake(self) -> None:
        """Look at what is wanted now."""
        self._poke()

    def stats(self) -> dict[str, Any]:
        """Numbers for `celery inspect stats`."""
        return {"role": self.role, "worker": self.worker, "held": len(self._held), "draining": self._draining, **self.counts}

    # What a role calls, on the loop.

    def hold(self, held: bool) -> None:
        """Take no mail for a while, or take it again; what has been asked for may still come.

        Args:
            held: True: take none.
        """
        self._on_hold = held
        self._room.set()

    def leave(self, error: GymqError) -> None:
        """Hand back what is held, which is not to blame, and end the process with an error.

        Args:
            error: says why.
        """
        self._failure, self._to_blame = error, False
        self._draining = self._stopped = True
        self._room.set()

    def _entry(self) -> WorkerEntry:
        return WorkerEntry(self.role, self.host, os.getpid(), self.mailboxes(), self.quarantine is None, time.time())

    def _poke(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._awake.set)

    @property
    def worker(self) -> str:
        """This incarnation's name, by which Redis knows what it holds."""
        return self.life.worker

    async def park(self, mail: list[Mail], schemas: list[int]) -> None:
        """Put mail aside that this worker is too old to read; newer ones take it up.

        Args:
            mail: the messages.
            schemas: of each.
        """
        if not self.counts["parked"]:
            print(f"gymq: {newer_waits(max(schemas), SCHEMA)}", file=sys.stderr)
        self.counts["parked"] += len(mail)
        for first in range(0, len(mail), PARK_BATCH):
            batch = list(zip(mail, schemas, strict=True))[first : first + PARK_BATCH]
            items = [[self.boxes.of(one), one.stream, one.id, schema] for one, schema in batch]
            await self.connection.insist("park", pack(items))
        for one in mail:
            self.release(one)

    async def _unpark(self) -> None:
        while not self._draining:
            moved, dropped = await self.life.connection.run("unpark", SCHEMA, PARK_BATCH, *self.boxes.names)
            if dropped:
                print(f"gymq: {dropped} messages that were put aside as newer are no mail; they were dropped", file=sys.stderr)
            if moved + dropped < PARK_BATCH:
                return

    # The life.

    async def main(self) -> None:
        """Live until drained or stopped; an exception means that the process must end."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        self._loop = asyncio.get_running_loop()
        if not await self._connect():
            return
        await self.prepare()
        await self.boxes.create(self.connection)
        await self.life.begin()
        background = [asyncio.create_task(job()) for job in (self._read, self._renew, self._sweep)]
        try:
            done, _ = await asyncio.wait(background, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
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
                if not self.patient:
                    raise ServerUnreachable(str(error)) from None
                if self._draining:
                    return False
                await asyncio.sleep(RECONNECT_PAUSE)

    async def _read(self) -> None:
        whole = True  # whether all mail that is ours has arrived
        while not self._draining:
            free = 0 if self._on_hold else self.capacity - len(self._held)
            if free <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            if not self.life.sure:
                # This process stood still, or Redis was away: what it takes before its next renewal may be another's.
                await asyncio.sleep(SURE_PAUSE)
                continue
            worker = self.worker
            try:
                if not whole:
                    await self._recall()
                    whole = True
                    continue
                mail = await self.boxes.take(self.reader, worker, free)
            except MailboxGone:
                self.life.doubt()
                continue
            except Outage:  # also while the server loads its data
                self.counts["outages"] += 1
                whole = False
                await self.reader.reconnect()
                # Redis may have been rolled back, or another server took over: what we have read may be ahead of it.
                await self.forget()
                continue
            while mail and not self.life.sure and worker == self.worker:
                await asyncio.sleep(SURE_PAUSE)
            if mail and worker == self.worker:  # else it was declared dead meanwhile, and others have this mail
                await self._accept(mail)

    async def _recall(self) -> None:
        """After an outage: mail may have been given to us in an answer that never arrived."""
        known = set(self._held)  # what is answered while we ask is not unknown
        held = await self.boxes.held(self.reader, self.worker)
        unknown = [mail for mail in held if (mail.stream, mail.id) not in known]
        if unknown:
            await self._accept(unknown)

    async def _accept(self, mail: list[Mail]) -> None:
        for one in mail:
            self._held[(one.stream, one.id)] = one
            if one.attempt:
                self.counts["redelivered"] += 1
        self.counts["taken"] += len(mail)
        await self.handle(mail)

    def release(self, mail: Mail) -> None:
        """A message was acknowledged: there is room for another."""
        if self._held.pop((mail.stream, mail.id), None) is not None:
            self._room.set()

    def spawn(self, coroutine: Any) -> None:
        """Run a coroutine that belongs to what is held; it is cancelled when the actor lapses."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[None]) -> None:
        """A task has ended; its failure is that of the actor."""
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            # A defect of ours, not of a user's code: end the process, what it holds goes to others.
            self._failure = failure
            self._draining = self._stopped = True
            self._room.set()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.settings.liveness / 3)
            if not await self.life.renew():
                self.counts["lapses"] += 1
                for task in list(self._tasks):
                    task.cancel()
                self._held.clear()
                await self.forget()
                await self.life.begin()
                self._room.set()

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), SWEEP)
            self._awake.clear()
            if self._draining:
                self._room.set()
            try:
                waiting = await self.life.sweep()
                if self.quarantine is not None:
                    await self.quarantine.look(waiting and not self._draining)
                await self._unpark()
                await self.duties()
            except Outage:
                await self.life.recover()
            except ServerFull:
                pass  # the next sweep tries again

    async def _finish(self) -> None:
        """After the last read: wait for what is held, hand back the rest, leave the registry."""
        await self.life.shut()
        limit = time.monotonic() + DRAIN
        while self._held and not self._stopped and time.monotonic() < limit:
            await asyncio.sleep(0.02)
        for task in list(self._tasks):
            task.cancel()
        await self.life.leave(broken=self._failure is not None and self._to_blame)
        if self.quarantine is not None:
            await self.quarantine.end()
        if self._failure is not None:
            raise self._failure


def newer_waits(schema: int, known: int) -> str:
    """What is said of mail that a worker is too old to read.

    Args:
        schema: the mail's.
        known: the newest that the worker reads.
    """
    return f"mail of a newer schema ({schema}; this worker reads up to {known}) waits; start newer workers"
