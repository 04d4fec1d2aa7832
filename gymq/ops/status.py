"""The state of an installation, read from Redis: runs, live workers, waiting messages, and what is missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import suppress

import msgspec

from gymq.api.environment import EnvironmentSpec
from gymq.client.replica_status import ModelWeights, weights_status
from gymq.errors import GymqError, UnknownName
from gymq.local.launch import needs_executor
from gymq.store.connection import Connection
from gymq.store.run_status import RunStatus
from gymq.store.sharded import Shards, scan
from gymq.store.worker_registry import live_executors, live_workers

#: States of a run in which nothing more will happen.
_FINAL_STATES = ("done", "cancelled")


class Mailbox(msgspec.Struct):
    """A mailbox.

    Args:
        name: `agent`, `model:SPEC` or `resource:ENVIRONMENT`; `@WORKER`: the private one of a worker, while messages lie there.
        waiting: messages that no worker has taken.
        taken: messages that workers are busy with.
        workers: live workers that read it.
        newer: messages that its workers are too old to read.
    """

    name: str
    waiting: int
    taken: int
    workers: int
    newer: int = 0


class Overview(msgspec.Struct):
    """The state of all shards together.

    Args:
        runs: oldest first.
        workers: live workers, by role.
        mailboxes: by name.
        paused: whether no rollouts are admitted.
        dead: the number of dead letters.
        weights: of models whose workers take new ones.
        loads: figures of model workers that host their model, by the worker's host and process.
        warnings: one line each.
    """

    runs: list[RunStatus]
    workers: dict[str, int]
    mailboxes: list[Mailbox]
    paused: bool
    dead: int
    weights: list[ModelWeights]
    loads: dict[str, dict[str, float]]
    warnings: list[str]


async def overview(shards: Shards, name: str | None = None) -> Overview:
    """Return the state of all shards together.

    Args:
        shards: connections to all shards.
        name: the one run to tell of; None: all runs that Redis still has.

    Raises:
        UnknownName: there is no such run.
    """
    runs = await _runs(shards, name)
    workers, readers, loads = await _workers(shards)
    dependents: defaultdict[str, list[str]] = defaultdict(list)
    for run in runs:
        if run.state not in _FINAL_STATES and not (run.state == "closed" and run.ended == run.total):
            for need in await _needs(shards, run):
                dependents[need].append(run.config.name)
    names = sorted({*readers, *(dependents.keys() - {"executor"})})
    mailboxes = [await _mailbox(shards, mailbox, readers[mailbox]) for mailbox in names]
    mailboxes += [mailbox for private in await shards.each(_private_mailboxes) for mailbox in private]
    paused = any(await shards.each(lambda connection: connection.send("EXISTS", connection.keys.paused)))
    dead: int = sum(await shards.each(lambda connection: connection.send("XLEN", connection.keys.dead)))
    weights = await weights_status(shards)
    warnings = [
        f"no worker serves {need}, which {', '.join(waiting)} needs; start {_remedy(need)}"
        for need, waiting in sorted(dependents.items())
        if not (workers.get("executor") if need == "executor" else readers[need])
    ]
    if paused:
        warnings.append("admission is paused; `gymq control resume` ends that")
    for run in runs:
        if run.paused and run.state not in _FINAL_STATES:
            warnings.append(f"run {run.config.name} is paused; `gymq control resume {run.config.name}` ends that")
    for mailbox in mailboxes:
        if mailbox.newer:
            warnings.append(f"{mailbox.newer} messages of a newer schema wait for {mailbox.name}; start newer workers")
    for model in weights:
        if model.failed:
            failed = f"{len(model.failed)} workers of {model.model} could not load its weights and left"
            warnings.append(f"{failed}; `gymq weights status --model {model.model}` says why")
    return Overview(runs, workers, mailboxes, paused, dead, weights, loads, warnings)


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


async def _workers(shards: Shards) -> tuple[dict[str, int], Counter[str], dict[str, dict[str, float]]]:
    """Return the live workers by role, the number of readers of each mailbox, and the loads by host and process."""
    # A process has an entry, and a name of its own, on each shard.
    live = [entry for entries in await shards.each(live_workers) for entry in entries.values()]
    processes = {(entry.role, entry.host, entry.pid): entry for entry in live}.values()
    executors = {name for names in await shards.each(live_executors) for name in names}
    # A quarantine reads suspects only, and comes and goes with them.
    roles = Counter("quarantine" if entry.quarantine else entry.role for entry in processes)
    readers = Counter(name for entry in processes if not entry.quarantine for name in entry.mailboxes)
    loads = {f"{entry.host}-{entry.pid}": entry.load for entry in processes if entry.load}
    if executors:
        roles["executor"] = len(executors)
    return dict(sorted(roles.items())), readers, dict(sorted(loads.items()))


async def _needs(shards: Shards, run: RunStatus) -> list[str]:
    """Return the mailboxes, and perhaps `executor`, without which a run stands still."""
    needs = ["agent", *(f"model:{spec}" for spec in (run.config.model, run.config.judge) if spec)]
    for fields in await shards.each(lambda connection: connection.send("HGETALL", connection.keys.run(run.config.name))):
        for field, value in zip(fields[::2], fields[1::2], strict=True):
            if field.startswith(b"spec:"):
                spec = msgspec.json.decode(value, type=EnvironmentSpec)
                needs += [f"resource:{spec.name}", *(["executor"] if needs_executor(spec) else [])]
    return list(dict.fromkeys(needs))


async def _mailbox(shards: Shards, name: str, workers: int) -> Mailbox:
    length = taken = newer = 0
    for connection in shards.connections:
        keys = connection.keys
        for stream in (keys.mailbox(name), keys.retry(name), keys.suspects(name)):
            if await connection.send("EXISTS", stream):
                length += await connection.send("XLEN", stream)
                # The first worker makes the group; messages may come before it.
                for group in await connection.send("XINFO", "GROUPS", stream):
                    taken += dict(zip(group[::2], group[1::2], strict=True))[b"pending"]
        newer += await connection.send("XLEN", keys.newer(name))
    return Mailbox(name, max(length - taken, 0) + newer, taken, workers, newer)


async def _private_mailboxes(connection: Connection) -> list[Mailbox]:
    """Return the private mailboxes of a shard in which messages lie."""
    mailboxes: list[Mailbox] = []
    keys = connection.keys
    for worker in sorted(name.decode() for name in await connection.send("HKEYS", keys.private)):
        stream = keys.private_mailbox(worker)
        length = await connection.send("XLEN", stream)
        if length:
            with suppress(GymqError):  # the mailbox is gone by now
                taken = (await connection.send("XPENDING", stream, keys.GROUP))[0]
                mailboxes.append(Mailbox(f"@{worker}", max(length - taken, 0), taken, 1))
    return mailboxes


def _remedy(need: str) -> str:
    """Return the command that starts a worker which serves a mailbox, or an executor."""
    role, _, name = need.partition(":")
    option = {"model": f" --model {name}", "resource": f" --environments {name}"}.get(role, "")
    return f"`gymq worker {role}{option}`"
