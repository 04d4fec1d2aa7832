"""Mail of a newer schema: workers that are too old to read it put it aside, and newer ones take it up."""

from __future__ import annotations

import logging

from gymq.runtime.mailbox import Mail, Mailboxes
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.scripts import ParkEntry
from gymq.wire.calls import SCHEMA

#: Messages that one script puts aside or takes up: a few milliseconds of the server's time.
BATCH = 100

log = logging.getLogger(__name__)


async def park(connection: Connection, boxes: Mailboxes, mail: list[Mail], schemas: list[int]) -> None:
    """Put mail aside, however long an outage takes.

    Args:
        connection: a connection.
        boxes: the worker's mailboxes, from which the mail comes.
        mail: the messages.
        schemas: of each.
    """
    for first in range(0, len(mail), BATCH):
        batch = list(zip(mail, schemas, strict=True))[first : first + BATCH]
        entries = [ParkEntry(boxes.of(one), one.stream, one.id, schema) for one, schema in batch]
        await connection.insist(scripts.park(entries))


async def unpark(connection: Connection, boxes: Mailboxes) -> None:
    """Bring back what was put aside and this worker can read.

    Args:
        connection: a connection.
        boxes: the worker's mailboxes, to which the mail goes.

    Raises:
        Outage: the connection broke.
    """
    while True:
        result = await connection.run(scripts.unpark(SCHEMA, BATCH, boxes.names))
        if dropped := result.dropped:
            log.warning("%d messages that were put aside as newer are no mail; they were dropped", dropped)
        if result.moved + dropped < BATCH:
            return
