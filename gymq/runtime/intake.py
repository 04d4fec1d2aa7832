"""The intake of an actor: it takes mail while there is room for it, and knows what is held."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gymq.observe.events import MailTaken, emit
from gymq.runtime.mailbox import Mail, Mailboxes, MailboxGone
from gymq.runtime.membership import Membership
from gymq.store.connection import Connection, Outage

#: Seconds between two looks at whether the worker was renewed, once it may have been declared dead.
RENEWAL_POLL = 0.01


class Intake:
    """Takes one worker's mail.

    Args:
        role: the worker's role.
        boxes: the worker's mailboxes.
        reader: a connection of its own, since reads block.
        life: the worker's membership; mail that it took under a name that was declared dead is another's.
        capacity: messages that it holds at most.
        handle: given each batch of mail.
        forget: called after an outage: what was read may be ahead of Redis.
    """

    def __init__(
        self,
        role: str,
        boxes: Mailboxes,
        reader: Connection,
        life: Membership,
        capacity: int,
        handle: Callable[[list[Mail]], Awaitable[None]],
        forget: Callable[[], Awaitable[None]],
    ) -> None:
        self.capacity = capacity
        self.on_hold = False
        #: Set from any thread; `recheck` on the loop ends a wait for room.
        self.closed = False
        self.held: dict[tuple[bytes, bytes], Mail] = {}
        self.counts = {"taken": 0, "redelivered": 0, "outages": 0}
        self._role = role
        self._boxes = boxes
        self._reader = reader
        self._life = life
        self._handle = handle
        self._forget = forget
        self._room = asyncio.Event()

    def recheck(self) -> None:
        """Look again whether mail may be taken."""
        self._room.set()

    def hold(self, held: bool) -> None:
        """Take no mail for a while, or take it again; mail that was asked for before may still come.

        Args:
            held: True: take none.
        """
        self.on_hold = held
        self._room.set()

    def set_capacity(self, capacity: int) -> None:
        """Change how many messages are held at most; those that are held beyond that are finished.

        Args:
            capacity: messages; 0: take none.
        """
        larger, self.capacity = capacity > self.capacity, capacity
        if larger:
            self._room.set()

    def release(self, mail: Mail) -> None:
        """Make room: a message was acknowledged."""
        if self.held.pop((mail.stream, mail.id), None) is not None:
            self._room.set()

    def release_all(self) -> None:
        """Make room: the worker was declared dead, and its mail belongs to others."""
        self.held.clear()
        self._room.set()

    async def run(self) -> None:
        """Take mail until the intake is closed."""
        complete = True  # whether all mail that was delivered to this worker has arrived
        while not self.closed:
            free = 0 if self.on_hold else self.capacity - len(self.held)
            if free <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            if not self._life.sure:
                # This process stood still, or Redis was away: what it takes before its next renewal may be another's.
                await asyncio.sleep(RENEWAL_POLL)
                continue
            worker = self._life.worker
            try:
                if not complete:
                    await self._recall(worker)
                    complete = True
                    continue
                mail = await self._boxes.take(self._reader, worker, free)
            except MailboxGone:
                self._life.doubt()
                continue
            except Outage:  # also while the server loads its data
                self.counts["outages"] += 1
                complete = False
                await self._reader.reconnect()
                # Redis may have been rolled back, or another server took over: what was read may be ahead of it.
                await self._forget()
                continue
            while mail and not self._life.sure and worker == self._life.worker:
                await asyncio.sleep(RENEWAL_POLL)
            if mail and worker == self._life.worker:  # else it was declared dead meanwhile, and others have this mail
                await self.accept(mail)

    async def _recall(self, worker: str) -> None:
        """Take up mail that was delivered in an answer that an outage lost."""
        known = set(self.held)  # before the look: what is acknowledged meanwhile must not be taken up again
        delivered = await self._boxes.held(self._reader, worker)
        unknown = [mail for mail in delivered if (mail.stream, mail.id) not in known]
        if unknown:
            await self.accept(unknown)

    async def accept(self, mail: list[Mail]) -> None:
        """Hold mail that was delivered, and have it handled."""
        self.held.update(((one.stream, one.id), one) for one in mail)
        self.counts["taken"] += len(mail)
        redelivered = sum(one.attempt > 0 for one in mail)
        self.counts["redelivered"] += redelivered
        emit(MailTaken(self._role, len(mail), redelivered))
        await self._handle(mail)
