"""`gymq cancel`: stop a run, or some of its groups and rollouts."""

from __future__ import annotations

import click

from gymq.cli.options import redis_options
from gymq.cli.shards import with_shards
from gymq.settings import Settings


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--group", "groups", multiple=True, metavar="ROW", help="Only the group of this row; may be repeated.")
@click.option(
    "--rollout", "rollouts", multiple=True, metavar="ROW.SAMPLE", help="Only this rollout, or its full id; may be repeated."
)
@redis_options
def cancel(run: str, groups: tuple[str, ...], rollouts: tuple[str, ...], settings: Settings) -> None:
    """Stop a RUN, or only groups and rollouts of it: nothing more of it begins, calls in flight are cut off, and what was in
    flight ends as `cancelled` with its messages so far. What has ended is kept.

    \b
    Examples:
      gymq cancel try1
      gymq cancel try1 --group 17 --group 18
      gymq cancel try1 --rollout 17.3
      gymq cancel weather-1a2b3c4d5e --of rollouts.jsonl
    """
    from gymq.errors import UsageError

    which = [group.removeprefix(f"{run}.") for group in groups]
    for group in which:
        if not group.isdecimal():
            raise UsageError(f"--group {group}: write the row's number")
    for rollout in rollouts:
        place = rollout.removeprefix(f"{run}.")
        row, _, sample = place.partition(".")
        if not (row.isdecimal() and sample.isdecimal()):
            raise UsageError(f"--rollout {rollout}: write ROW.SAMPLE or {run}.ROW.SAMPLE")
        which.append(place)
    if which:
        flying, waiting = with_shards(settings, lambda shards: shards.cancel_some(run, which))
        begun = f"; {waiting} have not begun and end when it is their turn" if waiting else ""
        click.echo(f"run {run}: {flying} rollouts in flight cancelled{begun}")
    else:
        flying = with_shards(settings, lambda shards: shards.cancel(run))
        click.echo(f"run {run}: cancelled; {flying} rollouts were in flight")
