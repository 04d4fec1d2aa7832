"""`gymq sink`: write a run's finished rollouts to files, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

import click

from gymq.cli.options import log_options, metrics_options, redis_options
from gymq.errors import UsageError
from gymq.observe.terminal import say
from gymq.settings import Settings

#: Seconds between two looks for a run that does not exist yet.
WAIT = 0.5

log = logging.getLogger(__name__)


@click.command()
@click.argument("kind", metavar="KIND")
@click.option("--run", required=True, metavar="RUN", help="The run; waited for if there is none of that name yet.")
@click.option("--out", required=True, metavar="PATH", help="jsonl: a file. parquet: a folder of parts.")
@click.option("--consumer", metavar="NAME", help="Under which name it reads; each name gets everything.  [default: KIND]")
@log_options
@metrics_options
@redis_options
def sink(kind: str, run: str, out: str, consumer: str | None, settings: Settings) -> int:
    """Write a run's finished rollouts to files: KIND is jsonl, parquet, or another installed sink.

    It ends when the run is over (exit code 0). Stopped (Ctrl-C: 130, SIGTERM: 143) or killed, the same command goes on:
    nothing is lost, nothing is written twice. A second process that writes the same place is refused (5). One on another host
    takes over, if the place holds what the first has acknowledged; then the first one ends (5).

    \b
    Examples:
      gymq sink jsonl --run try1 --out rollouts.jsonl
      gymq sink parquet --run try1 --out parts/
      gymq sink jsonl --run try1 --consumer backup --out /mnt/backup/try1.jsonl
    """
    from gymq import plugins
    from gymq.client.consumer import check_consumer
    from gymq.store.runs import check_name

    if not out or out == "/":
        raise UsageError(f"--out {out!r}: name a file (jsonl) or a folder of its own (parquet)")
    made = plugins.load(plugins.SINKS, kind)(Path(out), run)
    check_name(run)
    check_consumer(consumer or kind)
    if settings.metrics_port is not None:
        from gymq.observe.metrics import ProcessMetrics
        from gymq.observe.metrics_server import MetricsServer
        from gymq.store.topology import parse

        server = MetricsServer(
            ProcessMetrics(len(parse(settings.redis_url))).registry, settings.metrics_host, settings.metrics_port
        )
        log.info("metrics at %s", server.address)
    return asyncio.run(_feed(made, consumer or kind, settings))


async def _feed(made: Any, consumer: str, settings: Any) -> int:
    from gymq.aio import cancel_and_wait
    from gymq.store.connection import OUTAGE_LIMIT

    stop = asyncio.Event()
    code = 0

    def ask(number: int) -> None:
        nonlocal code
        if stop.is_set():
            os._exit(128 + number)  # asked twice: what is written is not lost, only not acknowledged
        code = 128 + number
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ask, number)
    work = asyncio.create_task(_write(made, consumer, settings, stop))
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait([work], timeout=OUTAGE_LIMIT)
    answered = work.done()
    await cancel_and_wait([asked] if answered else [asked, work])
    if not answered:
        say(f"{made.path}: Redis is away; what is written is kept, and the same command goes on", err=True)
        return code
    over = work.result()
    if over is None:
        return code
    again = f", {made.repeated} came again" if made.repeated else ""
    if made.rolled_back:
        again += f" ({made.rolled_back} had been lost by Redis)"
    missed = f", {made.missed} had been deleted before it was declared" if made.missed else ""
    say(f"{made.path}: {made.written} rollouts written{again}{missed}" + ("" if over else "; the same command goes on"))
    return 0 if over else code


async def _write(made: Any, consumer: str, settings: Any, stop: asyncio.Event) -> bool | None:
    """Wait for the run and feed the sink; return whether the run is over, None: asked to stop before it began."""
    from gymq.client.sink_loop import feed

    return await feed(made, consumer, settings, stop) if await _wait(made, settings, stop) else None


async def _wait(made: Any, settings: Any, stop: asyncio.Event) -> bool:
    """Wait for the run; return False if asked to stop meanwhile."""
    from gymq.store.connection import Connection

    connection = Connection(settings, "gymq-sink")
    await connection.connect()
    try:
        told = False
        while not await _exists(connection, made.run):
            if not told:
                say(f"waiting for run {made.run}", err=True)
                told = True
            if stop.is_set():
                return False
            await asyncio.wait([asyncio.ensure_future(stop.wait())], timeout=WAIT)
        return True
    finally:
        await connection.close()


async def _exists(connection: Any, run: str) -> bool:
    """Return whether there is such a run, however long an outage takes."""
    from gymq.store.connection import Outage

    while True:
        try:
            return bool(await connection.send("HEXISTS", connection.keys.run(run), "config"))
        except Outage:
            await connection.reconnect()
