"""Producing: rows from anywhere into a run's ledger, and a Celery message for each chunk, so that agents admit them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec
from kombu.exceptions import OperationalError

from gymq import plugins
from gymq.aio import run_blocking
from gymq.errors import DataError, ServerUnreachable
from gymq.ingest.prompt_template import PromptConfig
from gymq.ingest.row_parser import TaskIds, parse_row
from gymq.ingest.sampling import check_sampling
from gymq.settings import Settings
from gymq.store.batching import batches
from gymq.store.connection import Outage
from gymq.store.runs import RunConfig
from gymq.store.scripts import ChunkContent
from gymq.store.sharded import Shards
from gymq.store.task_ledger import CHUNK_ROWS, TaskLedger, deal, other_content
from gymq.wire.task import Task, encode_task

#: A row and its place, for errors.
Row = tuple[str, bytes | dict[str, Any]]


class Produced(msgspec.Struct):
    """Counts of one producer's rows.

    Args:
        rows: rows that the run has now from this source.
        known: how many of them it had before.
        bad: rows that were refused.
    """

    rows: int = 0
    known: int = 0
    bad: int = 0


class Producer:
    """Enqueues one source's rows.

    Args:
        settings: where Redis is.
        config: the run; it is created if there is none of that name.
        source: what the rows are called; with a row's position it makes a chunk's id, so that nothing is enqueued twice.
        prompt: words the opening messages of rows that have none.
        ids: of rows before these, when they are parts of one source.
        on_bad: told of each bad row, in one line.
        on_progress: told after each chunk.
        first: rows that the run has from elsewhere before these; over several shards rows are numbered on from there.
    """

    def __init__(
        self,
        settings: Settings,
        config: RunConfig,
        source: str,
        *,
        prompt: PromptConfig | None = None,
        ids: TaskIds | None = None,
        on_bad: Callable[[str], None] | None = None,
        on_progress: Callable[[Produced], None] | None = None,
        first: int = 0,
    ) -> None:
        self._settings = settings
        self._config = config
        self._source = source
        self._prompt = prompt
        self._ids = ids or TaskIds()
        self._on_bad = on_bad
        self._on_progress = on_progress
        self._first = first
        self.produced = Produced()

    async def run(self, rows: Iterable[Row], *, consumers: Iterable[str] = (), last: bool = True) -> Produced:
        """Enqueue all rows.

        Args:
            rows: the rows with their places, in an order that is always the same.
            consumers: declared before the first row, so that they miss nothing.
            last: True: the run gets no more rows afterwards.

        Raises:
            UsageError: the run exists and is another one, or the source is not what it was.
            RunClosed: it takes no rows.
            ServerUnreachable: Redis went away; the same call again goes on.
        """
        try:
            async with Shards(self._settings, "gymq-producer") as shards:
                await shards.create(self._config)
                for consumer in consumers:
                    await shards.declare(self._config.name, consumer)
                await self._enqueue(TaskLedger(shards.connections, self._config.name), rows)
                await shards.first.send("HSET", shards.first.keys.run(self._config.name), "bad", self.produced.bad)
                if last:
                    await shards.close_run(self._config.name)
                return self.produced
        except Outage as error:
            raise ServerUnreachable(
                f"the connection to Redis broke: {error}; run the same command again, nothing is enqueued twice"
            ) from None

    async def _enqueue(self, ledger: TaskLedger, rows: Iterable[Row]) -> None:
        have = await ledger.chunks()
        after = [""] * len(have)
        first = 0  # of the chunk's rows
        for chunk in batches(rows, CHUNK_ROWS, _weigh):
            name = f"{self._source}:{first}"
            tasks, bad = self._parse(chunk)
            before = self._first + self.produced.rows
            dealt = deal(tasks, before, len(have))
            known = sum(there[name].rows for there in have if name in there)
            if known:
                self._compare(name, f"rows {first + 1} to {first + len(chunk)}", have, dealt)
            self.produced.known += known
            if known < len(tasks):
                await ledger.write(name, tasks, before, after=after)
                await asyncio.to_thread(self._announce, name)
            self.produced.rows += len(tasks)
            self.produced.bad += bad
            first += len(chunk)
            after = [name if part else last for part, last in zip(dealt, after, strict=True)]
            if self._on_progress:
                self._on_progress(self.produced)

    def _compare(self, name: str, rows: str, have: list[dict[str, ChunkContent]], dealt: list[list[Task]]) -> None:
        """Compare a chunk with what the ledger has under its name; a part that a roll-back took is written again.

        Args:
            name: the chunk's name.
            rows: what its rows are called.
            have: of each shard the chunks that it has.
            dealt: of each shard the rows that are its part.

        Raises:
            UsageError: the contents differ.
        """
        for there, part in zip(have, dealt, strict=True):
            now = ChunkContent.of([encode_task(task) for task in part])
            if name in there and there[name] != now:
                raise other_content(self._config.name, f"{self._source}: {rows}", there[name], now)

    def _parse(self, chunk: list[Row]) -> tuple[list[Task], int]:
        known = plugins.environment_names()
        tasks: list[Task] = []
        for where, row in chunk:
            try:
                environment = self._config.environment
                task = parse_row(row, where=where, environment=environment, known=known, prompt=self._prompt)
                self._ids.add(task, where)
                tasks.append(task)
            except DataError as error:
                if self._on_bad:
                    self._on_bad(str(error))
        return tasks, len(chunk) - len(tasks)

    def _announce(self, chunk: str) -> None:
        # The ledger is the truth and admission looks at it anyway; the message makes it look now.
        from gymq.celery import app, broker
        from gymq.celery.queues import ENQUEUE

        # The app was made of the environment's settings, which need not be ours.
        told = broker.find(self._settings)
        ours = app.connection_for_write(told.url, ssl=told.ssl or False, transport_options=told.options)
        with suppress(OperationalError), ours as connection:
            app.send_task(ENQUEUE, [self._config.name, chunk, None], connection=connection)


def _weigh(row: Row) -> int:
    content = row[1]
    if isinstance(content, bytes):
        return len(content)
    try:
        return len(msgspec.json.encode(content, enc_hook=str))
    except (TypeError, ValueError, RecursionError):
        return 0  # the parser refuses it


def produce(run: RunConfig, rows: Iterable[dict[str, Any]], *, source: str = "script", last: bool = True) -> Produced:
    """Enqueue rows from a script; rows that are bad raise at once.

    Args:
        run: the run; it is created if there is none of that name.
        rows: rows as in a file of tasks, in an order that is always the same: what was enqueued before is skipped.
        source: what these rows are called; another name for other rows: `f"step {n}"` in a loop.
        last: True: the run gets no more rows afterwards.

    Raises:
        DataError: a row is bad; the rows before it are enqueued. Or the run's sampling parameters are.
        UsageError: the run exists and is another one, or it has other rows under that source.
        RunClosed, ServerUnreachable: the run or the server is not as needed.
    """
    return run_blocking(produce_async(run, rows, source=source, last=last))


async def produce_async(
    run: RunConfig, rows: Iterable[dict[str, Any]], *, source: str = "script", last: bool = True
) -> Produced:
    """Enqueue rows like `produce`, while the caller's loop goes on.

    Args:
        run, rows, source, last: as of `produce`.

    Raises:
        DataError, UsageError, RunClosed, ServerUnreachable: as `produce`.
    """

    def refuse(line: str) -> None:
        raise DataError(line)

    run = msgspec.structs.replace(run, sampling=check_sampling(run.sampling, "sampling"))
    producer = Producer(Settings.from_environment(), run, source, on_bad=refuse)
    return await producer.run(((f"{source}:{i}", row) for i, row in enumerate(rows, 1)), last=last)
