"""`gymq control`: pause, resume, drain and ask workers, over Celery's remote control."""

from __future__ import annotations

import os
from typing import Any

import click

from gymq.cli.options import redis_options
from gymq.cli.shards import with_shards
from gymq.errors import GymqError
from gymq.observe.terminal import say
from gymq.settings import Settings

#: Seconds in which workers answer; those that are busy importing may not.
TIMEOUT = 2.0


@click.group()
def control() -> None:
    """Pause, resume, drain or ask the workers.

    \b
    Examples:
      gymq control pause
      gymq control resume try1
      gymq control stats
      gymq control drain --worker model-4711@host
    """


def _app(settings: Settings) -> Any:
    with_shards(settings, lambda shards: shards.first.send("PING"))
    os.environ.update(settings.environment())  # the app is made of the environment's settings
    from gymq.celery import app

    return app


def _want(name: str | None, settings: Settings, paused: bool) -> None:
    if name is not None:
        return with_shards(settings, lambda shards: shards.pause(name, paused))
    # What is wanted stands in Redis; the message only makes workers look now.
    app = _app(settings)

    def want(connection: Any) -> Any:
        return connection.send("SET", connection.keys.paused, "1") if paused else connection.send("DEL", connection.keys.paused)

    with_shards(settings, lambda shards: shards.each(want))
    app.control.broadcast("pause" if paused else "resume")


@control.command()
@click.argument("run", required=False, metavar="[RUN]")
@redis_options
def pause(run: str | None, settings: Settings) -> None:
    """Admit no more rollouts, of one RUN or at all; those in flight go on.

    \b
    Examples:
      gymq control pause
      gymq control pause try1
    """
    _want(run, settings, paused=True)
    again = f"gymq control resume {run}" if run else "gymq control resume"
    say(f"paused: no rollouts{f' of run {run}' if run else ''} are admitted until `{again}`")


@control.command()
@click.argument("run", required=False, metavar="[RUN]")
@redis_options
def resume(run: str | None, settings: Settings) -> None:
    """Admit rollouts again, of the one RUN that was paused or at all.

    \b
    Examples:
      gymq control resume
      gymq control resume try1
    """
    _want(run, settings, paused=False)
    say(f"resumed{f': run {run}' if run else ''}")


@control.command()
@click.option("--worker", metavar="NAME", help="Only this one, as `gymq control stats` calls it.  [default: all]")
@redis_options
def drain(worker: str | None, settings: Settings) -> None:
    """Let workers finish what they hold, and end.

    \b
    Examples:
      gymq control drain --worker model-4711@host
      gymq control drain
    """
    replies: list[dict[str, Any]] | None = _app(settings).control.broadcast(
        "drain", destination=[worker] if worker else None, reply=True, timeout=TIMEOUT
    )
    answered = sorted(name for reply in replies or [] for name in reply)
    if not answered:
        raise GymqError(f"no worker answered{f' to {worker}' if worker else ''}; `gymq control stats` lists them")
    say(f"draining: {', '.join(answered)}")


@control.command()
@click.option("--worker", metavar="NAME", help="Only this one.  [default: all]")
@redis_options
def stats(worker: str | None, settings: Settings) -> None:
    """Ask the workers what they hold and what they have done.

    \b
    Examples:
      gymq control stats
    """
    from gymq.cli.table import make_table, show

    inspect = _app(settings).control.inspect(destination=[worker] if worker else None, timeout=TIMEOUT)
    found: dict[str, Any] = inspect.stats() or {}
    if not found:
        raise GymqError("no worker answered; is one running on this server?")
    table = make_table("worker", "role", ">held", "counts")
    for name, told in sorted(found.items()):
        ours = dict(told.get("gymq") or {"role": "executor"})
        role, held = ours.pop("role", "?"), ours.pop("held", "-")
        drains = " (draining)" if ours.pop("draining", False) else ""
        ours.pop("worker", None)
        table.add_row(name, role + drains, str(held), ", ".join(f"{key} {value}" for key, value in ours.items()))
    show(table)
