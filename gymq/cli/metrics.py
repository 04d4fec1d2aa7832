"""`gymq metrics`: what Redis knows of an installation, as Prometheus metrics."""

from __future__ import annotations

import asyncio
import logging
import signal

import click

from gymq.cli.options import log_options, redis_options
from gymq.observe.terminal import say
from gymq.settings import Settings

#: Seconds between the two looks of one print: rates need two.
ONE_LOOK = 2.0

log = logging.getLogger(__name__)


@click.command()
@log_options
@redis_options
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve them at /metrics; 0: at any free port.  [default: print]",
)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Where they are served.")
def metrics(settings: Settings, port: int | None, host: str) -> None:
    """Print what Redis knows of an installation as Prometheus metrics, or serve it until stopped.

    Mailboxes with their backlog, runs, consumers, workers, dead letters: one such process is enough for all. What each
    process knows it serves itself, with --metrics-port. docs/observability.md lists both.

    \b
    Examples:
      gymq metrics
      gymq metrics --port 9108
    """
    asyncio.run(_serve(settings, host, port) if port is not None else _print(settings))


async def _print(settings: Settings) -> None:
    from prometheus_client import generate_latest

    from gymq.ops.installation_metrics import InstallationMetrics
    from gymq.store.sharded import Shards

    metrics = InstallationMetrics()
    async with Shards(settings, "gymq-metrics") as shards:
        await metrics.look(shards)
        await asyncio.sleep(ONE_LOOK)
        await metrics.look(shards)
    say(generate_latest(metrics.registry).decode(), end="")


async def _serve(settings: Settings, host: str, port: int) -> None:
    from gymq.observe.metrics_server import MetricsServer
    from gymq.ops.installation_metrics import InstallationMetrics
    from gymq.store.sharded import Shards

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = InstallationMetrics()
    async with Shards(settings, "gymq-metrics") as shards:
        await metrics.look(shards)
        server = MetricsServer(metrics.registry, host, port)
        log.info("metrics at %s", server.address)
        await metrics.follow(shards, stop)
