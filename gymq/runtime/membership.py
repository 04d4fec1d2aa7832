"""Who is alive: a key for each worker that lapses with it, and the judgement of those whose key has lapsed.

Death is the lapse of that key and nothing else; how long a call takes decides nothing. Whoever judges must itself have
been connected, without a slow answer, for longer than the limit: after an outage all keys have lapsed and nobody is dead.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from typing import Any

import msgspec

from gymq.errors import UNREADABLE
from gymq.settings import Settings
from gymq.store.connection import FULL_PAUSE, Connection, Outage, ServerFull

#: Messages that one script hands back: a few milliseconds of the server's time.
HANDBACK_BATCH = 100

#: What stands before a worker's registry entry once it was declared dead and until its mail is handed back.
DEAD = b"dead"


class _Info(msgspec.Struct):
    mailboxes: list[str]


class Membership:
    """One worker's liveness and its judgement of others.

    Args:
        settings: the limit.
        connection: a connection of its own, so that nothing delays the renewal but the loop itself.
        info: what the registry says of this worker: role, host, pid, mailboxes.
        private: it has a private mailbox.
    """

    def __init__(self, settings: Settings, connection: Connection, info: dict[str, Any], private: bool = False) -> None:
        self.connection = connection
        self.worker = ""
        self.handed_back = 0
        self._limit = settings.liveness
        self._info = info
        self._private = private
        self._open_for = msgspec.json.encode(info["mailboxes"])
        self._shut = False
        self._doubt = False
        self._connected = time.monotonic()
        self._until = 0.0
        self._missing: dict[str, float] = {}

    async def begin(self) -> None:
        """Enter the registry under a new name."""
        self.worker = f"{self._info['role']}-{self._info['host']}-{self._info['pid']}-{secrets.token_hex(4)}"
        while True:
            try:
                started = time.monotonic()
                open_for = self._open_for if self._private else b""
                info = msgspec.json.encode(self._info)
                await self.connection.run("enter", self.worker, info, self._milliseconds, open_for)
                self._until, self._doubt = started + self._limit, False
                return await self.shut() if self._shut else None
            except Outage:
                await self.recover()
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)

    async def tell(self, what: dict[str, Any]) -> None:
        """Change what the registry says of this worker.

        Args:
            what: the fields that are others now.

        Raises:
            Outage: the connection broke; it is said with the next `tell` or `begin`.
        """
        self._info |= what
        if self.worker:
            await self.connection.run("tell", self.worker, msgspec.json.encode(self._info))

    async def renew(self) -> bool:
        """Renew the key; False: it lapsed and the worker was declared dead, its mail belongs to others."""
        while True:
            started = time.monotonic()
            try:
                # PEXPIRE works even when the server's memory is full.
                alive = self.connection.keys.alive(self.worker)
                if not self._doubt and await self.connection.send("PEXPIRE", alive, self._milliseconds):
                    if time.monotonic() - started > self._limit / 3:
                        self._connected = time.monotonic()
                elif not await self.connection.run("rejoin", self.worker, self._milliseconds, int(self._private)):
                    return False
                self._until, self._doubt = started + self._limit, False
                return True
            except Outage:
                await self.recover()
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)

    @property
    def sure(self) -> bool:
        """Whether nobody can have declared this worker dead: its key cannot have lapsed since it was renewed."""
        return time.monotonic() < self._until

    def doubt(self) -> None:
        """Its private mailbox is gone: it is not sure to be alive until its next renewal finds it so."""
        self._until, self._doubt = 0.0, True

    async def sweep(self) -> bool:
        """Hand back the mail of those who are dead; returns whether suspects wait for a quarantine.

        A worker is dead when its key was missing at two looks, a renewal's time apart, of a judge that was connected
        all the while; and who reads without standing in the registry is one that was declared dead and read on.
        """
        try:
            return await self._judge()
        except Outage:
            await self.recover()
            return False

    async def _judge(self) -> bool:
        started = time.monotonic()
        registry = await self.connection.send("HGETALL", self.connection.keys.workers)
        pairs = zip(registry[::2], registry[1::2], strict=True)
        others = {worker.decode(): info for worker, info in pairs if worker != self.worker.encode()}
        signs = await self.connection.send("MGET", *[self.connection.keys.alive(worker) for worker in others]) if others else []
        now = time.monotonic()
        if now - started > self._limit / 3:
            self._connected = now
        if now - self._connected <= self._limit:
            self._missing.clear()
            return False
        missing = [worker for worker, sign in zip(others, signs, strict=True) if sign is None]
        self._missing = {worker: self._missing.get(worker, now) for worker in missing}
        for worker, since in self._missing.items():
            if now - since >= self._limit / 3 or others[worker].startswith(DEAD):
                await self._hand_back(worker, self._mailboxes(worker, others[worker].removeprefix(DEAD)))
        orphans, waiting = await self.connection.run("orphans", *self._info["mailboxes"])
        for orphan in orphans:
            await self._hand_back(orphan.decode(), self._info["mailboxes"])
        return bool(waiting)

    def _mailboxes(self, worker: str, info: bytes) -> list[str]:
        try:
            return msgspec.json.decode(info, type=_Info).mailboxes
        except UNREADABLE as error:
            # Anybody who may write to Redis may write here. What no worker wrote is removed by those who look at it.
            print(f"gymq: worker {worker[:100]!r} is no worker: what is written of it cannot be read: {error}", file=sys.stderr)
            mine: list[str] = self._info["mailboxes"]
            return mine

    async def _hand_back(self, worker: str, mailboxes: list[str]) -> None:
        while True:
            moved = await self.connection.run("handback", worker, HANDBACK_BATCH, "0", *mailboxes)
            self.handed_back += max(moved, 0)
            if moved < HANDBACK_BATCH:
                return

    async def shut(self) -> None:
        """Close the private mailbox, and give what lies there to others."""
        self._shut = True
        if self._private:
            await self._empty("shut", self.worker, HANDBACK_BATCH)

    async def open(self) -> None:
        """Open the private mailbox again, if this worker has one and was not declared dead; else its next name opens one."""
        self._shut = False
        if self._private:
            await self._insist("open", self.worker, self._open_for)

    async def leave(self, broken: bool = False) -> None:
        """Hand back what this worker still holds and leave the registry.

        Args:
            broken: a defect ends it, so that what it holds may be to blame: that counts as a death.
        """
        await self._empty("handback", self.worker, HANDBACK_BATCH, "2" if broken else "1", *self._info["mailboxes"])

    async def _empty(self, script: str, *args: Any) -> None:
        """Run a script that moves mail until there is none left."""
        while await self._insist(script, *args) == HANDBACK_BATCH:
            pass

    async def _insist(self, script: str, *args: Any) -> Any:
        while True:
            try:
                return await self.connection.run(script, *args)
            except Outage:
                await self.recover()
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)

    async def recover(self) -> None:
        """Connect again after an outage; from now on it counts how long this worker has been connected."""
        await self.connection.reconnect()
        self._connected = time.monotonic()
        self._missing.clear()

    @property
    def _milliseconds(self) -> int:
        return round(self._limit * 1000)
