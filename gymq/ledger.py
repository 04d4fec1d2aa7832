"""A run's ledger: the rows that were enqueued, chunk by chunk, each chunk once."""

from __future__ import annotations

import asyncio

from gymq import registry
from gymq.environment import Environment, EnvironmentSpec
from gymq.errors import RunClosed
from gymq.link import Link, Outage, ServerFull
from gymq.run import add_environment
from gymq.task import Task, encode_task

#: Rows of one chunk: one script, one Celery message; a few milliseconds of the server's time.
CHUNK = 200

#: Bytes of unfinished rows that a ledger holds; beyond that the producer waits. So many small rows keep a large fleet busy
#: for minutes; Redis needs about a hundred bytes more for each.
MOST = 32 * 2**20

#: Seconds between two tries while the ledger is full.
PAUSE = 0.2

_CLOSED, _FULL = -1, -2


class Ledger:
    """One run's ledger.

    Args:
        link: a connection.
        run: the run's name.
    """

    def __init__(self, link: Link, run: str) -> None:
        self._link = link
        self._run = run
        self._described: set[str] = set()

    async def chunks(self) -> dict[str, int]:
        """The ids of the chunks that the ledger has, each with the number of its rows."""
        flat = await self._link.send("HGETALL", self._link.keys.chunks(self._run))
        return {chunk.decode(): int(rows) for chunk, rows in zip(flat[::2], flat[1::2], strict=True)}

    async def write(self, chunk: str, tasks: list[Task], wait: bool = True, after: str = "") -> int:
        """Write a chunk, once; wait while the ledger is full.

        Args:
            chunk: its id; the same rows must always come under the same id.
            tasks: its rows.
            wait: False: write it even if the ledger is full.
            after: the chunk that the ledger has before it: rows get their numbers in the order in which they are written.

        Returns:
            How many rows were written; 0 if the ledger has the chunk.

        Raises:
            RunClosed: the run takes no rows.
            UnknownName, UsageError: an environment cannot be described here.
            Outage: Redis came back without the chunk before this one; all of them are to be written again, in order.
        """
        for environment in {task.environment for task in tasks} - self._described:
            found: Environment = await asyncio.to_thread(registry.environment, environment)
            await self._describe(found.spec())
            self._described.add(environment)
        rows = [encode_task(task) for task in tasks]
        most = MOST if wait else 1 << 60
        while True:
            try:
                written = await self._link.run("enqueue", self._run, chunk, most, *rows)
            except Outage:
                await self._recover(after)
                continue
            except ServerFull:
                written = _FULL
            if written == _CLOSED:
                raise RunClosed(f"run {self._run!r} takes no more rows: it was closed, cancelled or removed")
            if written != _FULL:
                return written
            await asyncio.sleep(PAUSE)

    async def _recover(self, after: str) -> None:
        await self._link.reconnect()
        if after and not await self._link.send("HEXISTS", self._link.keys.chunks(self._run), after):
            raise Outage("it has lost rows that it had confirmed")

    async def _describe(self, spec: EnvironmentSpec) -> None:
        while True:
            try:
                return await add_environment(self._link, self._run, spec)
            except Outage:
                await self._link.reconnect()
