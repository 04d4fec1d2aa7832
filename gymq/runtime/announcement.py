"""The announcement of a worker that starts: while it loads what it needs, it stands in the registry and reads no mailbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gymq.runtime.membership import Membership
from gymq.settings import Settings
from gymq.store.connection import Connection
from gymq.store.worker_registry import WorkerEntry

#: Seconds after which a worker that is not ready announces itself: most are ready by then, and cost no command.
PATIENCE = 1.0


@asynccontextmanager
async def announced(settings: Settings, connection: Connection, entry: WorkerEntry) -> AsyncIterator[None]:
    """Keep an entry in the registry while the body runs, under a name of its own.

    Args:
        settings: the limit of liveness.
        connection: the connection of the worker's membership, which begins afterwards.
        entry: the entry; its `starting` names the mailboxes. A quarantine stands beside a worker, and announces nothing.
    """
    if entry.quarantine:
        yield
        return
    ready = asyncio.Event()
    announcement = asyncio.create_task(_announce(settings, connection, entry, ready))
    try:
        yield
    finally:
        ready.set()  # not cancelled: a command that is cut off would leave its answer on the connection
        await announcement


async def _announce(settings: Settings, connection: Connection, entry: WorkerEntry, ready: asyncio.Event) -> None:
    if await _within(PATIENCE, ready):
        return
    life = Membership(settings, connection, entry)
    await life.begin()
    while not await _within(settings.liveness / 3, ready):
        if not await life.renew():
            await life.begin()
    await life.leave()


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
        return True
    except TimeoutError:
        return False
