"""Membership: a worker's lease and heartbeats, and the hand-back of the mail of workers whose lease has lapsed.

Death is the lapse of the lease and nothing else; how long a call takes decides nothing. A judge must itself have been
connected, without a slow answer, for longer than the limit: after an outage all leases have lapsed, though no worker died.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from typing import Any, TypeVar

import msgspec

from gymq.errors import UNREADABLE
from gymq.loop_clock import Clock, loop_clock
from gymq.observe.events import HandedBack, emit
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.connection import FULL_PAUSE, Connection, Outage, ServerFull
from gymq.store.scripts import HandBackReason, ScriptCall
from gymq.store.worker_registry import Registration, WorkerEntry, new_name, registrations
from gymq.wire.activity import Activity

#: Looks at the registry in a second, of all workers together, however many there are: each reads all of it, so that a look of
#: each worker in each second would cost the square of their number.
LOOKS = 10.0

#: Messages that one script hands back: a few milliseconds of the server's time.
HANDBACK_BATCH = 100

T = TypeVar("T")

log = logging.getLogger(__name__)


class Membership:
    """One worker's lease and its judgement of others.

    Args:
        settings: the limit of liveness.
        connection: a connection of its own, so that nothing delays the renewal but the loop itself.
        entry: this worker's entry in the registry.
        private: it has a private mailbox.
        clock: by which it judges; None: that of the loop, for a judge that stood still knows of nobody's silence.
    """

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        entry: WorkerEntry,
        private: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.connection = connection
        self.worker = ""
        self.handed_back = 0
        self._limit = settings.liveness
        self._entry = entry
        self._private = private
        self._open_for = msgspec.json.encode(entry.mailboxes)
        self._shut = False
        self._doubt = False
        self._clock = clock
        self._connected = math.inf
        self._until = 0.0
        self._missing: dict[str, float] = {}
        # Workers that were alive at the last look; and those that were before an outage, and were not seen alive since.
        self._alive: set[str] = set()
        self._unseen: set[str] = set()
        self._look_at = 0.0

    async def begin(self) -> None:
        """Enter the registry under a new name."""
        if self._connected == math.inf:
            self._connected = self._now()
        self.worker = new_name(self._entry.role, self._entry.host, self._entry.pid)
        while True:
            try:
                started = time.monotonic()
                open_for = self._open_for if self._private else b""
                entry = msgspec.json.encode(self._entry)
                await self.connection.run(scripts.register_worker(self.worker, entry, self._milliseconds, open_for))
                self._until, self._doubt = started + self._limit, False
                return await self.shut() if self._shut else None
            except Outage:
                await self.recover()
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)

    async def tell(self, **changes: Any) -> None:
        """Change fields of this worker's entry, given by name.

        Raises:
            Outage: the connection broke; the next `tell` or `begin` writes them.
        """
        self._entry = msgspec.structs.replace(self._entry, **changes)
        if self.worker:
            await self.connection.run(scripts.update_worker(self.worker, msgspec.json.encode(self._entry)))

    async def tell_activity(self, activity: Activity) -> None:
        """Publish what this worker's process does, if that is something else than before.

        Raises:
            Outage, ServerFull: it could not be published; the next call does it.
        """
        if activity != (self._entry.activity or Activity()):
            await self.tell(activity=activity)

    async def renew(self) -> bool:
        """Renew the lease; False: it lapsed and the worker was declared dead, its mail belongs to others."""
        while True:
            started = time.monotonic()
            try:
                # PEXPIRE works even when the server's memory is full.
                alive = self.connection.keys.alive(self.worker)
                if not self._doubt and await self.connection.send("PEXPIRE", alive, self._milliseconds):
                    if time.monotonic() - started > self._limit / 3:
                        self._connected = self._now()
                elif not await self.connection.run(scripts.renew_worker(self.worker, self._milliseconds, self._private)):
                    return False
                self._until, self._doubt = started + self._limit, False
                return True
            except Outage:
                await self.recover()
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)

    @property
    def sure(self) -> bool:
        """Whether this worker is alive to all others: its key cannot have lapsed since it was renewed."""
        return time.monotonic() < self._until

    def doubt(self) -> None:
        """Take no liveness for granted until the next renewal: the private mailbox is gone."""
        self._until, self._doubt = 0.0, True

    async def sweep(self) -> int:
        """Hand back the mail of dead workers; return how many suspects wait for a quarantine.

        The more workers there are, the more seldom each looks, at random times; while it sees one missing, in each sweep.
        A worker is dead when its key was missing at two looks, a renewal's time apart, of a judge that was connected all
        the while. A reader without an entry in the registry was declared dead and read on. A worker that was not seen since an
        outage may have ended itself over that, which its mail did not cause.
        """
        if self._now() < self._look_at and not self._missing:
            return 0
        try:
            return await self._judge()
        except Outage:
            await self.recover()
            return 0

    async def _judge(self) -> int:
        started = time.monotonic()
        found = await registrations(self.connection)
        dead = [one for one in found if not one.alive and one.worker != self.worker]
        self._alive = {one.worker for one in found if one.alive}
        self._unseen -= self._alive
        now = self._now()
        self._look_at = now + len(found) / LOOKS * random.uniform(0.5, 1.5) if len(found) > LOOKS else now
        if time.monotonic() - started > self._limit / 3:
            self._connected = now
        if now - self._connected <= self._limit:
            self._missing.clear()
            return 0
        self._missing = {one.worker: self._missing.get(one.worker, now) for one in dead}
        for one in dead:
            if now - self._missing[one.worker] >= self._limit / 3 or one.declared_dead:
                await self._hand_back(one.worker, self._mailboxes(one))
        orphans = await self.connection.run(scripts.find_orphans(self._entry.mailboxes))
        for orphan in orphans.workers:
            await self._hand_back(orphan, self._entry.mailboxes)
        return orphans.suspects

    def _mailboxes(self, dead: Registration) -> list[str]:
        try:
            return dead.entry().mailboxes
        except UNREADABLE as error:
            # Whoever may write to Redis may write here. The hand-back removes what no worker wrote.
            what = "worker %r is no worker: its entry in the registry cannot be read, and is removed: %s"
            log.warning(what, dead.worker[:100], error)
            return self._entry.mailboxes

    async def _hand_back(self, worker: str, mailboxes: list[str]) -> None:
        messages = 0
        reason = HandBackReason.OUTAGE if worker in self._unseen else HandBackReason.DEAD
        self._unseen.discard(worker)
        moved: int | None = HANDBACK_BATCH
        while moved == HANDBACK_BATCH:
            moved = await self.connection.run(scripts.hand_back(worker, HANDBACK_BATCH, reason, mailboxes))
            messages += moved or 0
        self.handed_back += messages
        if moved is not None:  # else it is alive
            emit(HandedBack(worker, worker.partition("-")[0], messages))

    async def shut(self) -> None:
        """Close the private mailbox, and give the mail in it to others."""
        self._shut = True
        if self._private:
            while await self._insist(scripts.close_mailbox(self.worker, HANDBACK_BATCH)) == HANDBACK_BATCH:
                pass

    async def open(self) -> None:
        """Open the private mailbox again, if this worker has one and was not declared dead; else its next name opens one."""
        self._shut = False
        if self._private:
            await self._insist(scripts.open_mailbox(self.worker, self._open_for))

    async def leave(self, broken: bool = False) -> int:
        """Hand back what this worker still holds and leave the registry; return how many messages that was.

        Args:
            broken: a defect ends it, so that what it holds may be to blame, and the hand-back counts as a death.
        """
        reason = HandBackReason.DEFECT if broken else HandBackReason.LEAVING
        call = scripts.hand_back(self.worker, HANDBACK_BATCH, reason, self._entry.mailboxes)
        total = 0
        while (moved := await self._insist(call) or 0) == HANDBACK_BATCH:
            total += moved
        return total + moved

    async def _insist(self, call: ScriptCall[T]) -> T:
        while True:
            try:
                return await self.connection.run(call)
            except Outage:
                await self.recover()
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)

    async def recover(self) -> None:
        """Connect again after an outage, and count from now on how long this worker has been connected."""
        await self.connection.reconnect()
        self._connected = self._now()
        self._missing.clear()
        self._unseen |= self._alive

    def _now(self) -> float:
        return (self._clock or loop_clock()).now()

    @property
    def _milliseconds(self) -> int:
        return round(self._limit * 1000)
