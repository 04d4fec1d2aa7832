"""The watch over an actor that was asked to end: while Redis is away it can hand nothing back, and would wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gymq.store.connection import OUTAGE_LIMIT, Connection, Outage

#: Seconds between two looks at whether an end is asked for, and between two questions to Redis once it is.
LOOK_INTERVAL = 0.2


async def outlasted(connection: Connection, ending: Callable[[], bool]) -> None:
    """Return when an end is asked for and Redis has not answered for `OUTAGE_LIMIT` seconds since.

    Args:
        connection: any connection to the shard, open or being opened.
        ending: whether an end is asked for.
    """
    while True:
        await asyncio.sleep(LOOK_INTERVAL)
        if ending():
            try:
                async with asyncio.timeout(OUTAGE_LIMIT):
                    await _answer(connection)
            except TimeoutError:
                return


async def _answer(connection: Connection) -> None:
    while True:
        try:
            await connection.probe()  # what it holds can be handed back only to a server that takes writes
            return
        except Outage:
            await connection.reconnect()
