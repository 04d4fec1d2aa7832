"""What Redis says of everything: the runs, the workers that are alive, the mail that waits, and what is missing."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import msgspec

from gymq.api.environment import EnvironmentSpec
from gymq.client.replica_status import ModelWeights, weights_status
from gymq.errors import GymqError, UnknownName
from gymq.local.launch import needs_executor
from gymq.store.connection import Connection
from gymq.store.runs import RunStatus
from gymq.store.sharded import Shards, scan

#: States in which nothing more will happen.
_OVER = ("done", "cancelled")


class Mailbox(msgspec.Struct):
    """A mailbox.

    Args:
        name: `agent`, `model:SPEC` or `resource:ENVIRONMENT`; `@WORKER`: the private one of a worker, while mail lies there.
        waiting: messages that no worker has taken.
        taken: messages that workers are busy with.
        workers: workers alive that read it.
        newer: messages that its workers are too old to read.
    """

    name: str
    waiting: int
    taken: int
    workers: int
    newer: int = 0


class Overview(msgspec.Struct):
    """The whole picture.

    Args:
        runs: oldest first.
        workers: workers alive, by role.
        mailboxes: by name.
        paused: no rollouts are admitted.
        dead: dead letters.
        weights: of models whose workers take new ones.
        loads: of model workers that host what they ask: what it is at, by the worker's host and process.
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
    """Look at everything.

    Args:
        shards: connections.
        name: only this run; None: all runs that Redis still has.

    Raises:
        UnknownName: there is no such run.
    """
    runs = await _runs(shards, name)
    workers, readers, loads = await _workers(shards)
    needs: dict[str, list[str]] = {}
    for one in runs:
        if one.state not in _OVER and not (one.state == "closed" and one.ended == one.total):
            for need in await _needs(shards, one):
                needs.setdefault(need, []).append(one.config.name)
    boxes = [await _mailbox(shards, box, readers[box]) for box in sorted({*readers, *(needs.keys() - {"executor"})})]
    boxes += [box for found in await shards.each(_own) for box in found]
    warnings = [
        f"nobody serves {need}, which {', '.join(waiting)} needs; start {_how(need)}"
        for need, waiting in sorted(needs.items())
        if not (workers.get("executor") if need == "executor" else readers[need])
    ]
    paused = any(await shards.each(lambda connection: connection.send("EXISTS", connection.keys.paused)))
    if paused:
        warnings.append("admission is paused; `gymq control resume` ends that")
    warnings += [
        f"run {one.config.name} is paused; `gymq control resume {one.config.name}` ends that"
        for one in runs
        if one.paused and one.state not in _OVER
    ]
    for box in boxes:
        if box.newer:
            warnings.append(f"{box.newer} messages of a newer schema wait for {box.name}; start newer workers")
    dead: int = sum(await shards.each(lambda connection: connection.send("XLEN", connection.keys.dead)))
    weights = await weights_status(shards)
    for model in weights:
        if model.failed:
            what = f"{len(model.failed)} workers of {model.model} could not load its weights and left"
            warnings.append(f"{what}; `gymq weights status --model {model.model}` says why")
    return Overview(runs, workers, boxes, paused, dead, weights, loads, warnings)


async def _runs(shards: Shards, name: str | None) -> list[RunStatus]:
    if name is not None:
        return [await shards.status(name)]
    names: set[str] = set()
    for connection in shards.connections:
        # Not `runs`: runs that are done are no longer there, but stay readable until they lapse.
        prefix = connection.keys.run("")
        names.update(key.removeprefix(prefix) for key in await scan(connection, f"{prefix}*"))
    found: list[RunStatus] = []
    for one in sorted(names):
        try:
            found.append(await shards.status(one))
        except UnknownName:  # it lapsed or was removed meanwhile
            continue
    return sorted(found, key=lambda one: (one.config.created, one.config.name))


async def _workers(shards: Shards) -> tuple[dict[str, int], Counter[str], dict[str, dict[str, float]]]:
    """The workers alive by role, how many of them read each mailbox, and what those say of their load that do."""
    alive: dict[tuple[str, str, int], dict[str, Any]] = {}
    executors: set[str] = set()
    for connection in shards.connections:
        flat = await connection.send("HGETALL", connection.keys.workers)
        infos = {worker.decode(): info for worker, info in zip(flat[::2], flat[1::2], strict=True)}
        signs: list[bytes | None] = (
            await connection.send("MGET", *[connection.keys.alive(worker) for worker in infos]) if infos else []
        )
        for info, sign in zip(infos.values(), signs, strict=True):
            if sign is not None and info.startswith(b"{"):
                told: dict[str, Any] = msgspec.json.decode(info)
                # A process has a name of its own on each shard.
                alive[told["role"], told["host"], told["pid"]] = told
        # Executors hold no mail, so they stand in no registry.
        prefix = connection.keys.alive("")
        executors.update(key.removeprefix(prefix) for key in await scan(connection, connection.keys.alive("executor-*")))
    roles: Counter[str] = Counter()
    readers: Counter[str] = Counter()
    for told in alive.values():
        if told.get("alone"):  # it reads suspects only, and comes and goes
            roles["quarantine"] += 1
            continue
        roles[told["role"]] += 1
        readers.update(told["mailboxes"])
    if executors:
        roles["executor"] = len(executors)
    loads = {f"{told['host']}-{told['pid']}": told["load"] for told in alive.values() if told.get("load")}
    return dict(sorted(roles.items())), readers, dict(sorted(loads.items()))


async def _needs(shards: Shards, one: RunStatus) -> list[str]:
    """The mailboxes, and perhaps `executor`, without which a run stands still."""
    needs = ["agent", *(f"model:{spec}" for spec in dict.fromkeys((one.config.model, one.config.judge)) if spec)]
    for fields in await shards.each(lambda connection: connection.send("HGETALL", connection.keys.run(one.config.name))):
        for field, value in zip(fields[::2], fields[1::2], strict=True):
            if field.startswith(b"spec:"):
                spec = msgspec.json.decode(value, type=EnvironmentSpec)
                needs.append(f"resource:{spec.name}")
                if needs_executor(spec):
                    needs.append("executor")
    return list(dict.fromkeys(needs))


async def _mailbox(shards: Shards, name: str, workers: int) -> Mailbox:
    length = taken = 0
    newer = 0
    for connection in shards.connections:
        for stream in (connection.keys.mailbox(name), connection.keys.retry(name), connection.keys.suspects(name)):
            if await connection.send("EXISTS", stream):
                length += await connection.send("XLEN", stream)
                # The first worker makes the group; mail may come before it.
                for group in await connection.send("XINFO", "GROUPS", stream):
                    taken += dict(zip(group[::2], group[1::2], strict=True))[b"pending"]
        newer += await connection.send("XLEN", connection.keys.newer(name))
    return Mailbox(name, max(length - taken, 0) + newer, taken, workers, newer)


async def _own(connection: Connection) -> list[Mailbox]:
    """The private mailboxes with mail."""
    found: list[Mailbox] = []
    for worker in sorted(await connection.send("HKEYS", connection.keys.private)):
        own = connection.keys.private_mailbox(worker.decode())
        length = await connection.send("XLEN", own)
        if length:
            with suppress(GymqError):  # it is gone by now
                taken = (await connection.send("XPENDING", own, connection.keys.GROUP))[0]
                found.append(Mailbox(f"@{worker.decode()}", max(length - taken, 0), taken, 1))
    return found


def _how(need: str) -> str:
    """The command that starts who serves something."""
    role, _, which = need.partition(":")
    option = {"model": f" --model {which}", "resource": f" --environments {which}"}.get(role, "")
    return f"`gymq worker {role}{option}`"
