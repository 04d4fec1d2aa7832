"""`gymq consumer`: the consumers of a run's finished rollouts."""

from __future__ import annotations

import click

from gymq.cli.options import redis_options
from gymq.cli.shards import with_shards
from gymq.observe.terminal import say
from gymq.settings import Settings


@click.group()
def consumer() -> None:
    """List or drop the consumers of a run.

    \b
    Examples:
      gymq consumer list try1
      gymq consumer drop try1 trainer
    """


@consumer.command("list")
@click.argument("run", metavar="RUN")
@redis_options
def show(run: str, settings: Settings) -> None:
    """List the consumers of a RUN, and how many finished rollouts each has not acknowledged.

    \b
    Examples:
      gymq consumer list try1
    """
    status = with_shards(settings, lambda shards: shards.status(run))
    for name, unread in sorted(status.unread.items()):
        say(f"{name}: {unread} of {status.ended} not acknowledged")
    if not status.unread:
        say("no consumers")


@consumer.command("drop")
@click.argument("run", metavar="RUN")
@click.argument("name", metavar="NAME")
@redis_options
def drop(run: str, name: str, settings: Settings) -> None:
    """Forget consumer NAME of a RUN: finished rollouts are not kept for it any more, and the run does not wait for it.

    \b
    Examples:
      gymq consumer drop try1 trainer
    """
    with_shards(settings, lambda shards: shards.drop_consumer(run, name, settings.ttl))
    say(f"run {run}: consumer {name} dropped")
