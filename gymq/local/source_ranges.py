"""The ranges in which a run takes a source: a larger `--limit` adds rows behind the others, never in their midst."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gymq.client.producer import Produced, Producer
from gymq.ingest.prompt_template import PromptConfig
from gymq.ingest.row_parser import TaskIds
from gymq.local.preflight import read
from gymq.settings import Settings
from gymq.store.connection import Connection
from gymq.store.runs import RunConfig

#: Stands for "to the source's end" in the run's record.
_END = "end"


async def source_ranges(connection: Connection, run: str, source: str, limit: int | None) -> list[tuple[int, int | None]]:
    """Return the ranges in which a run takes a source, as pairs of first row and end; write them into the run's record.

    A producer's chunks are the same only if the same rows end a range each time. So the limits of earlier commands stay
    the ends of ranges, and a smaller limit than an earlier one changes nothing.

    Args:
        connection: a connection.
        run: the run's name; the run exists.
        source: the source's name.
        limit: rows that the run is to take from it now; None: all.
    """
    field = f"parts:{source}"
    known = await connection.send("HGET", connection.keys.run(run), field)
    ends = [None if end == _END else int(end) for end in known.decode().split(",")] if known else []
    if not ends or (ends[-1] is not None and (limit is None or limit > ends[-1])):
        ends.append(limit)
        await connection.send(
            "HSET", connection.keys.run(run), field, ",".join(_END if end is None else str(end) for end in ends)
        )
    return list(zip([0, *[end for end in ends if end is not None]], ends, strict=False))


async def produce(
    settings: Settings,
    config: RunConfig,
    data: str,
    source: str,
    parts: list[tuple[int, int | None]],
    *,
    prompt: PromptConfig | None,
    last: bool = True,
    on_bad: Callable[[str], None] | None = None,
    on_progress: Callable[[Produced], None] | None = None,
) -> Produced:
    """Enqueue the ranges of a source, one after the other.

    Args:
        settings: where Redis is.
        config: the run.
        data: the source.
        source: its name.
        parts: as `source_ranges` returns them.
        prompt: templates of the opening messages of rows that have none.
        last: whether the run is closed afterwards.
        on_bad: called with one line for each bad row.
        on_progress: called at intervals with the numbers so far.

    Raises:
        GymqError: the source cannot be read, the run takes no rows, or Redis cannot be reached.
    """
    total = Produced()
    ids = TaskIds()

    def add(made: Produced) -> Produced:
        return Produced(total.rows + made.rows, total.known + made.known, total.bad + made.bad)

    for start, end in parts:
        producer = Producer(
            settings,
            config,
            f"{source}+{start}" if start else source,
            prompt=prompt,
            ids=ids,
            on_bad=on_bad,
            on_progress=None if on_progress is None else lambda made: on_progress(add(made)),
            first=total.rows,
        )
        total = add(await producer.run(read(data, start, end), last=last and end == parts[-1][1]))
        await asyncio.sleep(0)
    return total
