"""`gymq cancel`: stop a run, or some of its groups and rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gymq.cli.options import redis_options
from gymq.cli.shards import with_shards
from gymq.observe.terminal import say
from gymq.settings import Settings

if TYPE_CHECKING:
    from gymq.store.sharded import Shards
    from gymq.wire.ids import PartId


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="TASK",
    help="Only the group of this task: its id, or its row's number; may be repeated.",
)
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
      gymq cancel try1 --group 17 --group q-18
      gymq cancel try1 --rollout 17.3
      gymq cancel weather-1a2b3c4d5e --of rollouts.jsonl
    """
    from gymq.errors import UsageError
    from gymq.wire.ids import PartId

    which: list[PartId] = []
    for rollout in rollouts:
        part = PartId.check(rollout, run)
        if part is None or part.sample is None:
            raise UsageError(f"--rollout {rollout}: write ROW.SAMPLE or {run}.ROW.SAMPLE")
        which.append(part)

    async def cancel_parts(shards: Shards) -> tuple[int, int]:
        return await shards.cancel_some(run, [*await find_groups(shards, run, groups), *which])

    if groups or rollouts:
        flying, waiting = with_shards(settings, cancel_parts)
        begun = f"; {waiting} have not begun and end when it is their turn" if waiting else ""
        say(f"run {run}: {flying} rollouts in flight cancelled{begun}")
    else:
        flying = with_shards(settings, lambda shards: shards.cancel(run))
        say(f"run {run}: cancelled; {flying} rollouts were in flight")


async def find_groups(shards: Shards, run: str, names: tuple[str, ...]) -> list[PartId]:
    """Return the groups that ids of tasks, numbers of rows and ids of groups name.

    Args:
        shards: the run's shards.
        run: the run's name.
        names: what a person wrote.

    Raises:
        UnknownName: a name is none of these.
        UsageError: a name is one task's id and another's row.
    """
    from gymq.errors import UnknownName, UsageError
    from gymq.store.task_ledger import find_rows
    from gymq.wire.ids import PartId

    plain = [name for name in names if not name.startswith(f"{run}.")]
    rows: dict[str, int] = {}
    if plain:
        for found in await shards.each(lambda connection: find_rows(connection, run, plain)):
            rows |= found
    groups: list[PartId] = []
    for name in names:
        part = PartId.check(name, run)
        row = rows.get(name) if name in plain else None
        numbered = part.row if part is not None and part.sample is None else None
        group = row if numbered is None else numbered
        if group is None:
            raise UnknownName(
                f"--group {name}: run {run!r} has no task of that id that is not finished, and it is no row's number"
            )
        if row is not None and numbered is not None and row != numbered:
            both = f"is a row's number, and the id of the task in row {row}"
            raise UsageError(f"--group {name}: {both}; write {run}.{numbered} or {run}.{row}")
        groups.append(PartId(group))
    return groups
