"""The state of an installation, read from Redis: runs, live workers, waiting messages, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress

import msgspec

from gymq.client.replica_status import ModelWeights, weights_status
from gymq.errors import UnknownName
from gymq.ops.bottleneck import Bottleneck, bottleneck, stage_seconds
from gymq.ops.mailboxes import Mailbox, private_mailboxes
from gymq.ops.situation import Situation, admission_paused, needs, rate_limits, read_need, remedy
from gymq.ops.workforce import read_workforce
from gymq.store.run_status import RunStatus
from gymq.store.scripts import RateLimitStatus
from gymq.store.sharded import Shards, scan
from gymq.wire.activity import Activity

#: States of a run in which nothing more will happen.
_FINAL_STATES = ("done", "cancelled")


class Overview(msgspec.Struct):
    """The state of all shards together.

    Args:
        runs: oldest first.
        workers: live workers, by role.
        mailboxes: by name; the executors' queue is `executor`.
        paused: whether no rollouts are admitted.
        dead: the number of dead letters.
        weights: of models whose workers take new ones.
        loads: figures of model workers that host their model, by the worker's host and process.
        warnings: one line each.
        waits: what each run that is not over waits for, by its name.
        seconds: where the time of all calls went in the last minute, by stage.
        activity: what all workers did in the last minute.
        limits: rate limits that were used of late.
        starting: mailboxes whose workers load what they need, with the seconds that they have taken so far.
    """

    runs: list[RunStatus]
    workers: dict[str, int]
    mailboxes: list[Mailbox]
    paused: bool
    dead: int
    weights: list[ModelWeights]
    loads: dict[str, dict[str, float]]
    warnings: list[str]
    waits: dict[str, Bottleneck] = {}
    seconds: dict[str, float] = {}
    activity: Activity = msgspec.field(default_factory=Activity)
    limits: list[RateLimitStatus] = []
    starting: dict[str, float] = {}


async def overview(shards: Shards, name: str | None = None) -> Overview:
    """Return the state of all shards together.

    Args:
        shards: connections to all shards.
        name: the one run to tell of; None: all runs that Redis still has.

    Raises:
        UnknownName: there is no such run.
    """
    runs = await _runs(shards, name)
    workforce = await read_workforce(shards)
    going = [run for run in runs if run.state not in _FINAL_STATES]
    needed = {run.config.name: await needs(shards, run) for run in going}
    dependents: defaultdict[str, list[str]] = defaultdict(list)
    for run in going:
        if not (run.state == "closed" and run.ended == run.total):
            for need in needed[run.config.name]:
                dependents[need].append(run.config.name)
    names = sorted({*workforce.readers, *dependents})
    boxes = {box: await read_need(shards, box, workforce) for box in names}
    private = [box for some in await shards.each(private_mailboxes) for box in some]
    mailboxes, lying = [*boxes.values(), *private], sum(box.waiting + box.taken for box in private)
    paused, limits = await admission_paused(shards), await rate_limits(shards)
    waits: dict[str, Bottleneck] = {}
    for run in going:
        its = {box: boxes[box] for box in needed[run.config.name] if box in boxes}
        if its:
            waits[run.config.name] = bottleneck(Situation(run, its, workforce, limits, paused, private=lying))
    dead: int = sum(await shards.each(lambda connection: connection.send("XLEN", connection.keys.dead)))
    weights = await weights_status(shards)
    warnings = [
        f"no worker serves {need}, which {', '.join(waiting)} needs; start {remedy(need)}"
        for need, waiting in sorted(dependents.items())
        if need not in workforce.readers and need not in workforce.starting
    ]
    if paused:
        warnings.append("admission is paused; `gymq control resume` ends that")
    for run in going:
        if run.paused:
            warnings.append(f"run {run.config.name} is paused; `gymq control resume {run.config.name}` ends that")
    for mailbox in mailboxes:
        if mailbox.newer:
            warnings.append(f"{mailbox.newer} messages of a newer schema wait for {mailbox.name}; start newer workers")
    for model in weights:
        if model.failed:
            failed = f"{len(model.failed)} workers of {model.model} could not load its weights and left"
            warnings.append(f"{failed}; `gymq weights status --model {model.model}` says why")
    return Overview(
        runs, workforce.roles, mailboxes, paused, dead, weights, workforce.loads, warnings, waits,
        stage_seconds(workforce.activity, mailboxes, limits), workforce.activity, limits, workforce.starting,
    )  # fmt: skip


async def _runs(shards: Shards, name: str | None) -> list[RunStatus]:
    """Return the status of one run, or of all that Redis still has, oldest first."""
    if name is not None:
        return [await shards.status(name)]
    names: set[str] = set()
    for connection in shards.connections:
        # Not the index of runs: a run that is done has left it, and stays readable until it lapses.
        prefix = connection.keys.run("")
        names.update(key.removeprefix(prefix) for key in await scan(connection, f"{prefix}*"))
    runs: list[RunStatus] = []
    for run in sorted(names):
        with suppress(UnknownName):  # it has lapsed or was removed meanwhile
            runs.append(await shards.status(run))
    return sorted(runs, key=lambda run: (run.config.created, run.config.name))
