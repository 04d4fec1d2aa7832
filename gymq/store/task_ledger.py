"""A run's ledger: the rows that were enqueued, chunk by chunk, each chunk once."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import TypeVar
from zlib import crc32

import msgspec

from gymq import plugins
from gymq.api.environment import Environment, EnvironmentSpec
from gymq.errors import RunClosed, UsageError
from gymq.store import scripts
from gymq.store.connection import Connection, Outage, ServerFull
from gymq.store.runs import add_environment
from gymq.store.scripts import ChunkContent, EnqueueRefusal
from gymq.wire.task import Task, encode_task

#: Rows of one chunk: one script, one Celery message; a few milliseconds of the server's time.
CHUNK_ROWS = 200

#: Bytes of unfinished rows that a ledger holds; beyond that the producer waits. So many small rows keep a large fleet busy
#: for minutes; Redis needs about a hundred bytes more for each.
MAX_BYTES = 32 * 2**20

#: Seconds between two tries while the ledger is full.
FULL_RETRY_PAUSE = 0.2

#: Rows that one HSCAN reads: about a millisecond of the server's time.
SCAN_ROWS = 500

Row = TypeVar("Row")


class TaskLedger:
    """One run's ledger, dealt out to the shards: a row after the other to the next one.

    Args:
        connections: a connection to each shard, in their order.
        run: the run's name.
    """

    def __init__(self, connections: Sequence[Connection], run: str) -> None:
        self._connections = connections
        self._run = run
        self._described: set[str] = set()

    async def chunks(self) -> list[dict[str, ChunkContent]]:
        """Return for each shard the ids of its chunks, each with its content there."""
        chunks: list[dict[str, ChunkContent]] = []
        for connection in self._connections:
            flat = await connection.send("HGETALL", connection.keys.chunks(self._run))
            pairs = zip(flat[::2], flat[1::2], strict=True)
            chunks.append({chunk.decode(): ChunkContent.parse(content.decode()) for chunk, content in pairs})
        return chunks

    async def write(
        self, chunk: str, tasks: list[Task], first: int | None = None, wait: bool = True, after: Sequence[str] = ()
    ) -> int:
        """Write a chunk, once; wait while the ledger is full.

        Args:
            chunk: its id; the same rows must always come under the same id.
            tasks: its rows.
            first: how many rows stand before these; it says which shard comes first. None: any.
            wait: False: write it even if the ledger is full.
            after: of each shard the chunk that its ledger has before it, if any: rows get their numbers in the order in which
                they are written.

        Returns:
            How many rows were written; 0 if the ledger has the chunk.

        Raises:
            RunClosed: the run takes no rows.
            UnknownName, UsageError: an environment cannot be described here, or the ledger has other rows under this id.
            Outage: Redis came back without the chunk before this one; all of them are to be written again, in order.
        """
        for environment in {task.environment for task in tasks} - self._described:
            described: Environment = await asyncio.to_thread(plugins.environment, environment)
            for connection in self._connections:
                await self._describe(connection, described.spec())
            self._described.add(environment)
        rows = [encode_task(task) for task in tasks]
        # Single rows, each a chunk, must not all go to one shard. A chunk that is written again must be dealt the same way.
        dealt = deal(rows, crc32(chunk.encode()) if first is None else first, len(self._connections))
        most = MAX_BYTES if wait else 1 << 60
        written = 0
        for connection, part, before in zip(self._connections, dealt, after or [""] * len(dealt), strict=True):
            written += await self._write(connection, chunk, part, most, before) if part else 0
        return written

    async def _write(self, connection: Connection, chunk: str, rows: list[bytes], most: int, after: str) -> int:
        while True:
            try:
                written = await connection.run(scripts.enqueue(self._run, chunk, most, rows))
            except Outage:
                await self._recover(connection, after)
                continue
            except ServerFull:
                written = EnqueueRefusal.FULL
            if written is EnqueueRefusal.CLOSED:
                raise RunClosed(f"run {self._run!r} takes no more rows: it was closed, cancelled or removed")
            if written is EnqueueRefusal.OTHER:
                there = await connection.send("HGET", connection.keys.chunks(self._run), chunk)
                raise other_content(self._run, chunk, ChunkContent.parse(there.decode()), ChunkContent.of(rows))
            if not isinstance(written, EnqueueRefusal):
                return written
            await asyncio.sleep(FULL_RETRY_PAUSE)

    async def _recover(self, connection: Connection, after: str) -> None:
        await connection.reconnect()
        if after and not await connection.send("HEXISTS", connection.keys.chunks(self._run), after):
            raise Outage("Redis has lost rows that it had confirmed")

    async def _describe(self, connection: Connection, spec: EnvironmentSpec) -> None:
        while True:
            try:
                return await add_environment(connection, self._run, spec)
            except Outage:
                await connection.reconnect()


def other_content(run: str, rows: str, was: ChunkContent, now: ChunkContent) -> UsageError:
    """Return the error about rows that the ledger has with other content; it names both.

    Args:
        run: the run's name.
        rows: what the rows are called.
        was: the content in the ledger.
        now: the content that was to be written.
    """
    return UsageError(
        f"{rows}: run {run!r} has {was.rows} good rows with digest {was.digest[:12]} under this name, and these are {now.rows} "
        f"with digest {now.digest[:12]}; give other rows another `source`, or leave the source as it was"
    )


class _TaskHead(msgspec.Struct, array_like=True):
    """The first field of a task."""

    id: str


_head_decoder = msgspec.msgpack.Decoder(_TaskHead)


async def find_rows(connection: Connection, run: str, ids: Collection[str]) -> dict[str, int]:
    """Return the rows of tasks that are not finished, by the tasks' own ids; ids that the shard has not are left out.

    Args:
        connection: a connection; its shard's ledger is read from end to end.
        run: the run's name.
        ids: the tasks' ids.
    """
    rows: dict[str, int] = {}
    cursor = 0
    while True:
        reply = await connection.send("HSCAN", connection.keys.rows(run), cursor, "COUNT", SCAN_ROWS)
        cursor, flat = int(reply[0]), reply[1]
        for row, task in zip(flat[::2], flat[1::2], strict=True):
            name = _head_decoder.decode(task).id
            if name in ids:
                rows[name] = int(row)
        if not cursor:
            return rows


def deal(rows: list[Row], first: int, shards: int) -> list[list[Row]]:
    """Deal rows out to shards in turn.

    As every shard numbers its rows as they come, and row n of shard s is known as n * shards + s, one producer's rows have
    the numbers of their places.

    Args:
        rows: the rows.
        first: how many were dealt before.
        shards: how many shards there are.

    Returns:
        The rows of each shard.
    """
    return [rows[(shard - first) % shards :: shards] for shard in range(shards)]
