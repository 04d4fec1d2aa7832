"""`gymq produce`: enqueue tasks, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from gymq.cli.options import redis_flags, redis_settings, run_options
from gymq.observe.terminal import say


@click.command()
@click.argument("env", metavar="ENV")
@run_options("task")
@run_options("produce")
@click.option("--consumer", "consumers", multiple=True, metavar="NAME", help="Declared before the first row; may be repeated.")
@click.option("--keep-open", is_flag=True, help="More rows will come, from another command.")
@redis_flags
def produce(env: str, redis: str | None, of: str | None, consumers: tuple[str, ...], keep_open: bool, **given: Any) -> int:
    """Enqueue tasks of environment ENV, a name or FILE.py:CLASS, and nothing else: other commands start workers and sinks.

    Doing it twice enqueues nothing twice: rows are known by what the data hold and where in them they stand. While the
    run has as many unfinished rows as it may, this waits. Exit code 3: some rows were bad; each is one line.

    \b
    Examples:
      gymq produce weather --data rows.jsonl --run try1 --model scripted
      gymq produce reasoning_gym --data 'reasoning_gym:chain_sum?size=1000' --run sums --model openai:qwen \\
          --samples 8 --temperature 1 --consumer trainer
      gymq produce counter --data a.jsonl --run both --model scripted --keep-open
      gymq produce counter --data b.jsonl --run both --model scripted
    """
    from gymq import plugins
    from gymq.client.consumer import check_consumer
    from gymq.client.producer import Produced
    from gymq.ingest.source import fingerprint
    from gymq.local.read_options import read_run_options
    from gymq.local.source_ranges import produce as enqueue
    from gymq.local.source_ranges import source_ranges
    from gymq.store.runs import check_name
    from gymq.store.sharded import Shards

    options = read_run_options(given, needed=("data", "run", "model"))
    env = plugins.add_environment(env)
    plugins.agent(options.agent)
    assert options.run is not None
    check_name(options.run)
    for consumer in consumers:
        check_consumer(consumer)
    config = options.config(env, options.run)
    source = fingerprint(options.data)
    settings = redis_settings(redis or options.redis, of)

    async def work() -> Produced:
        async with Shards(settings, "gymq-produce") as shards:
            await shards.create(config)
            for consumer in consumers:
                await shards.declare(config.name, consumer)
            parts = await source_ranges(shards.first, config.name, source, options.limit)
        return await enqueue(
            settings,
            config,
            options.data,
            source,
            parts,
            prompt=options.prompt,
            last=not keep_open,
            on_bad=lambda line: say(line, err=True),
            on_progress=_progress(config.name),
        )

    made = asyncio.run(work())
    state = "open for more rows" if keep_open else "closed: it gets no more rows"
    say(f"run {config.name}: {made.rows - made.known} rows enqueued, {made.known} were there, {made.bad} bad; {state}")
    return 3 if made.bad else 0


def _progress(name: str) -> Any:
    """Tell how far it is: on one line of a terminal, now and then elsewhere."""
    import sys
    import time

    terminal = sys.stderr.isatty()
    spoken = time.monotonic()

    def tell(made: Any) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= (0.2 if terminal else 10.0):
            spoken = time.monotonic()
            say(f"run {name}: {made.rows} rows, {made.bad} bad", err=True, end="\r" if terminal else "\n")

    return tell
