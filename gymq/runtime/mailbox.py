"""Mailboxes: each is a stream, its retry stream and that of its suspects, each with one consumer group.

A worker may have a private mailbox besides: one stream, for mail of all the mailboxes that it reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from gymq.errors import GymqError
from gymq.store import scripts
from gymq.store.connection import FULL_PAUSE, Connection, Outage, ServerFull
from gymq.store.keys import Keys

#: Milliseconds that a read waits for mail; also how late a draining worker or a new outage is noticed.
BLOCK_MS = 1000

#: Deaths of a process that held nothing but this mail after which it is a dead letter: two may be bad luck.
STRIKES = 3

#: Digits of a count or a version in mail; no worker writes a longer one.
MAX_DIGITS = 16

#: Milliseconds that a read waits which looks at some of the streams only; the others wait meanwhile.
BLOCK_IN_TURN = 50

#: What a read returns of one stream: its key, and of each entry the id and the fields; None: the entry was deleted.
StreamReply = tuple[bytes, Sequence[tuple[bytes, list[bytes] | None]]]


class Mail(msgspec.Struct):
    """One message as it lies in a stream.

    Args:
        stream: the stream's key.
        id: its id in the stream.
        fields: names and values in turn, as they were written.
        attempt: how many workers died with it in hand.
        strikes: how many of them held nothing else.
        victim: the last of them, once it is a suspect.
    """

    stream: bytes
    id: bytes
    fields: list[bytes]
    attempt: int = 0
    strikes: int = 0
    victim: str = ""


class MailboxGone(GymqError):
    """The worker was declared dead, and its private mailbox removed."""


class Mailboxes:
    """The mailboxes that one worker reads.

    Args:
        names: their names.
        keys: the names of the shard's keys.
        suspects_only: it reads suspects and nothing else.
        private: it reads its private mailbox, too.
    """

    def __init__(self, names: list[str], keys: Keys, suspects_only: bool = False, private: bool = False) -> None:
        self.names = names
        self._keys = keys
        self._private = private
        self._all = [key(name) for key in (keys.mailbox, keys.retry, keys.suspects) for name in names]
        self._retry = [] if suspects_only else [keys.retry(name) for name in names]
        self._first = [(keys.suspects if suspects_only else keys.mailbox)(name) for name in names]
        self._turn = 0

    async def create(self, connection: Connection) -> None:
        """Make the streams and their groups where they do not exist, however long an outage takes.

        What already lies there will be delivered.

        Args:
            connection: a connection.
        """
        left = list(self._all)
        while left:
            try:
                await connection.send("XGROUP CREATE", left[-1], Keys.GROUP, "0", "MKSTREAM")
            except Outage:
                await connection.reconnect()
                continue
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)
                continue
            except GymqError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            left.pop()

    async def take(self, connection: Connection, worker: str, free: int) -> list[Mail]:
        """Take mail, what was handed back first; wait a while if there is none.

        Args:
            connection: a connection of the reader's own, since the read blocks.
            worker: the name under which it is taken.
            free: how many calls the worker can start now; it gets no more than that.

        Raises:
            Outage: the connection broke; mail may have been taken all the same, see `held`.
            MailboxGone: the worker was declared dead.
        """
        try:
            return await self._take(connection, worker, free)
        except GymqError as error:
            raise self._gone(error) from None

    async def _take(self, connection: Connection, worker: str, free: int) -> list[Mail]:
        first = self._first_of(worker)
        streams, block = self._retry + first, BLOCK_MS
        if free < len(streams):
            # Each stream may yield COUNT messages, which would be too many: a script counts over all of them, and only
            # the wait for the next mail is on a few streams, all in turn.
            self._turn = (self._turn + 1) % len(streams)
            in_turn = first[self._turn % len(first) :] + first[: self._turn % len(first)]
            reply = await connection.run(scripts.take_mail(worker, free, [*self._retry, *in_turn]))
            if reply:
                return parse_mail(reply)
            streams = (streams[self._turn :] + streams[: self._turn])[:free]
            block = BLOCK_IN_TURN
        count = max(1, free // len(streams))
        reply = await connection.send(
            "XREADGROUP",
            "GROUP",
            Keys.GROUP,
            worker,
            "COUNT",
            count,
            "BLOCK",
            block,
            "STREAMS",
            *streams,
            *[">"] * len(streams),
        )
        return parse_mail(reply)

    async def held(self, connection: Connection, worker: str) -> list[Mail]:
        """Return the mail that was delivered to a worker and is not acknowledged.

        Args:
            connection: a connection of the reader's own.
            worker: its name.

        Raises:
            Outage: the connection broke.
            MailboxGone: the worker was declared dead.
        """
        streams = self._retry + self._first_of(worker)
        try:
            reply = await connection.send("XREADGROUP", "GROUP", Keys.GROUP, worker, "STREAMS", *streams, *["0"] * len(streams))
        except GymqError as error:
            raise self._gone(error) from None
        return parse_mail(reply)

    def _first_of(self, worker: str) -> list[str]:
        # In turn with the others, not before them: else mail that was sent while no private mailbox was open, and what new
        # rollouts send there after it, would wait for as long as this worker is busy.
        return [self._keys.private_mailbox(worker), *self._first] if self._private else self._first

    def _gone(self, error: GymqError) -> GymqError:
        text = str(error)
        gone = self._private and (("NOGROUP" in text and self._keys.private_mailbox("") in text) or "UNBLOCKED" in text)
        return MailboxGone(text) if gone else error

    def of(self, mail: Mail) -> str:
        """Return the name of the mailbox that mail was meant for."""
        name = mail.stream.decode().removeprefix(self._keys.mailbox(""))
        if name.startswith("@"):
            fields = dict(zip(mail.fields[::2], mail.fields[1::2], strict=False))
            return fields.get(b"m", b"").decode(errors="replace") or self.names[0]  # no worker sends it without a name
        return name.removesuffix(":retry").removesuffix(":alone")


def parse_mail(reply: Sequence[StreamReply] | None) -> list[Mail]:
    """Read the reply of a read; its values may have been written by anybody who may write to Redis."""
    mail: list[Mail] = []
    for stream, entries in reply or ():
        for id_, fields in entries:
            if fields is None:
                continue  # another worker acknowledged and deleted it
            one = Mail(stream, id_, fields)
            # What the hand-back wrote stands last: k, w, a; or a alone, before it was a suspect.
            if len(fields) >= 2 and fields[-2] == b"a":
                one.attempt = _count(fields[-1])
                if len(fields) >= 6 and fields[-6] == b"k":
                    one.strikes, one.victim = _count(fields[-5]), fields[-3].decode(errors="replace")
            mail.append(one)
    return mail


def _count(text: bytes) -> int:
    # A forged count counts as none.
    return int(text) if len(text) < MAX_DIGITS and text.isdigit() else 0
