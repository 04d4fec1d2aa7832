"""The producer and the sink of a measurement, each a process of its own, started by `bench.system`.

Each gets ready, prints `ready`, waits for a line on its standard input, does its work, prints `done`, and stays until its
standard input is closed, so that what it cost can still be read.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
from gymq_sinks.jsonl import JsonlSink

from bench.rows import rows
from gymq import plugins
from gymq.celery import app
from gymq.client.producer import Producer
from gymq.client.sink_loop import feed
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.runs import RunConfig, create

CONSUMER = "bench"


class Load(msgspec.Struct):
    """What is to be done.

    Args:
        run: the run's name.
        count: rollouts.
        concurrency: rollouts in flight.
        model: SPEC of the model.
        environment: the environment.
        turns: model calls of each rollout.
    """

    run: str
    count: int
    concurrency: int
    model: str = "scripted"
    environment: str = "weather"
    turns: int = 2

    def config(self) -> RunConfig:
        """The run."""
        return RunConfig(
            self.run, self.environment, "tool", self.model, max_turns=max(30, self.turns), concurrency=self.concurrency
        )


async def _declare(load: Load, settings: Settings) -> None:
    connection = Connection(settings, "bench")
    await connection.connect()
    await create(connection, load.config())
    await connection.run(scripts.declare_consumer(load.run, CONSUMER))
    await connection.close()


def _wait() -> None:
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit("bench: the parent is gone")


def produce(load: Load, settings: Settings) -> None:
    """Create the run; when told to, enqueue its rows."""
    asyncio.run(_declare(load, settings))
    plugins.points(plugins.ENVIRONMENTS)
    app.finalize()
    _wait()
    produced = asyncio.run(Producer(settings, load.config(), "bench").run(rows(load.count, load.turns, load.environment)))
    if produced.rows != load.count or produced.bad:
        sys.exit(f"bench: produced {produced}")


def sink(load: Load, settings: Settings, path: Path) -> None:
    """Write the run's results to a file, until the run is over."""
    _wait()
    target = JsonlSink(path, load.run)
    over: Any = asyncio.run(feed(target, CONSUMER, settings, asyncio.Event()))
    if not over or target.written != load.count or target.repeated:
        sys.exit(f"bench: the sink wrote {target.written} rollouts, got {target.repeated} twice")


def main() -> None:
    """Be one of the two."""
    role, load, path = sys.argv[1], msgspec.json.decode(sys.argv[2], type=Load), Path(sys.argv[3])
    settings = Settings.from_environment()
    if role == "produce":
        produce(load, settings)
    else:
        sink(load, settings, path)
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
