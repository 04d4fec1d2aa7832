"""The work of the Celery task `gymq.enqueue`: write rows that are not in the ledger, and admit what credits allow."""

from __future__ import annotations

import asyncio
from typing import Any

from gymq import plugins
from gymq.errors import ServerUnreachable, UsageError
from gymq.ingest.row_parser import TaskIds, parse_row
from gymq.settings import Settings
from gymq.store.admission import admit
from gymq.store.connection import Connection, Outage
from gymq.store.runs import check_name, load_config
from gymq.store.sharded import Shards
from gymq.store.task_ledger import TaskLedger


def enqueue(settings: Settings, run: str, chunk: str, rows: list[Any] | None) -> int:
    """Write rows to a run's ledger, unless they stand there, and admit what the run's credits allow.

    Args:
        settings: where Redis is.
        run: the run's name.
        chunk: the chunk's id.
        rows: rows as in a file of tasks; None: they stand in the ledger.

    Returns:
        How many rollouts were started.

    Raises:
        GymqError: the run is unknown or closed, or a row is bad: then the whole chunk is refused.
    """
    return asyncio.run(_enqueue(settings, run, chunk, rows))


async def _enqueue(settings: Settings, run: str, chunk: str, rows: list[Any] | None) -> int:
    check_name(run)
    if not isinstance(chunk, str) or not (rows is None or isinstance(rows, list)):
        raise UsageError("a chunk's id is text, and its rows are a list or null")
    shards = Shards(settings, "gymq-enqueue")
    try:
        if not rows:
            return sum(await shards.each(_try))
        await shards.reconnect()  # however long a shard is away: these rows stand nowhere else
        config = await load_config(shards.first, run)
        known = plugins.points(plugins.ENVIRONMENTS)
        ids, tasks = TaskIds(), []
        for i, row in enumerate(rows, 1):
            tasks.append(parse_row(row, where=f"{chunk}:{i}", environment=config.environment, known=known))
            ids.add(tasks[-1], f"{chunk}:{i}")
        await TaskLedger(shards.connections, run).write(chunk, tasks, wait=False)
        return sum(await shards.each(admit))
    finally:
        await shards.close()


async def _try(connection: Connection) -> int:
    """Admit on a shard; on one that is away, agents admit when it is back."""
    try:
        await connection.connect()
        return await admit(connection)
    except (ServerUnreachable, Outage):
        if connection.shards == 1:
            raise
        return 0
