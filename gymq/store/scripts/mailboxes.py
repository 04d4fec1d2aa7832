"""Scripts that move mail between mailboxes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import msgspec

from gymq.store.scripts.script import ScriptCall, pack

#: Streams with their entries, each an id and a flat list of fields: the shape of XREADGROUP's reply.
StreamEntries = list[tuple[bytes, list[tuple[bytes, list[bytes]]]]]


def take_mail(worker: str, limit: int, streams: Sequence[str]) -> ScriptCall[StreamEntries]:
    """Take mail from several streams, without waiting.

    Args:
        worker: name of the worker that takes it.
        limit: most messages over all streams together.
        streams: keys of the streams, the most urgent first.
    """
    return ScriptCall("take_mail", (worker, limit, *streams), list)


class ParkEntry(msgspec.Struct):
    """Mail whose schema is too new for its worker.

    Args:
        mailbox: mailbox that the mail is meant for.
        stream, mail: stream and id of the mail.
        schema: the mail's schema.
    """

    mailbox: str
    stream: str | bytes
    mail: str | bytes
    schema: int


def park(entries: Sequence[ParkEntry]) -> ScriptCall[int]:
    """Put mail aside for newer workers; the reply is how many messages were still this worker's."""
    return ScriptCall("park", (pack(entries),), int)


class Unparked(msgspec.Struct):
    """Mail that was put aside and is not any more.

    Args:
        moved: messages that went back to their mailboxes.
        dropped: entries that are no mail.
    """

    moved: int
    dropped: int


def unpark(schema: int, limit: int, mailboxes: Sequence[str]) -> ScriptCall[Unparked]:
    """Take up mail that older workers have put aside.

    Args:
        schema: newest schema that the worker reads.
        limit: most messages of one mailbox.
        mailboxes: the worker's mailboxes.
    """
    return ScriptCall("unpark", (schema, limit, *mailboxes), lambda reply: Unparked(*reply))


class HandBackReason(IntEnum):
    """The reason of a hand-back."""

    #: Others found the worker dead: a death in which the mail was held.
    DEAD = 0
    #: The worker leaves in order: no death.
    LEAVING = 1
    #: A defect ends the worker: a death.
    DEFECT = 2
    #: Others found the worker dead that was alive before an outage: it may have ended itself over that, so it is no death.
    OUTAGE = 3


def hand_back(worker: str, limit: int, reason: HandBackReason, mailboxes: Sequence[str]) -> ScriptCall[int | None]:
    """Hand a worker's mail back to its mailboxes.

    Args:
        worker: the worker's name.
        limit: most messages of one call.
        reason: why; of a `DEAD` worker that is alive nothing is moved.
        mailboxes: the worker's mailboxes.

    Returns:
        A call whose reply is how many messages were moved, fewer than `limit` if none is left; None: the worker is alive.
    """
    arguments = (worker, limit, reason.value, *mailboxes)
    return ScriptCall("hand_back", arguments, lambda moved: None if moved < 0 else int(moved))


class Orphans(msgspec.Struct):
    """Readers of mailboxes that stand in no registry.

    Args:
        workers: their names.
        suspects: how many suspects wait for a quarantine.
    """

    workers: list[str]
    suspects: int


def find_orphans(mailboxes: Sequence[str]) -> ScriptCall[Orphans]:
    """Find who reads mailboxes, or has a private one, and stands in no registry."""
    return ScriptCall("find_orphans", (*mailboxes,), lambda reply: Orphans([worker.decode() for worker in reply[0]], reply[1]))


def open_mailbox(worker: str, open_for: bytes) -> ScriptCall[bool]:
    """Open a private mailbox again; False: the worker was declared dead, or has none.

    Args:
        worker: the worker's name.
        open_for: JSON list of what is sent there.
    """
    return ScriptCall("open_mailbox", (worker, open_for), bool)


def close_mailbox(worker: str, limit: int) -> ScriptCall[int]:
    """Close a private mailbox and give what was not taken to others; fewer than `limit` were moved if none is left.

    Args:
        worker: the worker's name.
        limit: most messages of one call.
    """
    return ScriptCall("close_mailbox", (worker, limit), int)


class Served(msgspec.Struct):
    """The server's time, and the times of service of mailboxes.

    Args:
        now: seconds since the epoch.
        served: mailbox -> since when it is served without a gap, and when it was served last, seconds since the epoch.
    """

    now: float
    served: dict[str, tuple[float, float]]


def mark_served(gap: int, ttl: int, everybody: bool, mailboxes: Sequence[str]) -> ScriptCall[Served]:
    """Note that mailboxes are served now, and read the server's time.

    Args:
        gap: ms between two such notes after which a mailbox was not served.
        ttl: ms after which all is forgotten.
        everybody: True: return the times of all mailboxes.
        mailboxes: those that are served.
    """
    return ScriptCall("mark_served", (gap, ttl, int(everybody), *mailboxes), _served)


def _served(reply: list[Any]) -> Served:
    now, flat = reply
    times: dict[str, tuple[float, float]] = {}
    for mailbox, value in zip(flat[::2], flat[1::2], strict=True):
        since, _, last = value.partition(b" ")
        times[mailbox.decode()] = int(since) / 1000, int(last) / 1000
    return Served(now / 1000, times)
