"""Workers of this machine that faults can be injected into, and the work that they hold.

Redis names them: a victim has a live entry in the worker registry. Its process is one of gymq that this user started.

A work item is a call, `rollout:step:n`, or a step of an agent, `rollout:version`.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Collection
from pathlib import Path

import msgspec

from gymq.celery.queues import EXECUTOR
from gymq.errors import GymqError
from gymq.store.connection import Connection
from gymq.store.sharded import Shards
from gymq.store.worker_registry import live_executors, live_workers
from gymq.wire.calls import decode_call
from gymq.wire.ids import RolloutId, place

#: Pending entries that are read of each stream; a worker holds far fewer.
_MAX_PENDING = 10_000


class Victim(msgspec.Struct, frozen=True):
    """A process that a fault can be injected into.

    Args:
        role: its role.
        pid: its process.
        workers: its names in Redis, one for each shard that it is alive on; an executor has the same on all.
        mailboxes: the mailboxes that it reads; an executor reads none.
        quarantine: whether it serves suspects only.
    """

    role: str
    pid: int
    workers: tuple[str, ...]
    mailboxes: tuple[str, ...] = ()
    quarantine: bool = False


async def victims(shards: Shards, roles: Collection[str] = ()) -> list[Victim]:
    """Return the live worker processes of this machine and this user, by role and pid.

    Args:
        shards: connections to all shards.
        roles: the roles wanted; all if empty.

    Raises:
        Outage: a connection broke.
    """
    processes: dict[tuple[str, int], Victim] = {}
    for victim in itertools.chain.from_iterable(await shards.each(_live)):
        if _is_own_worker(victim.pid) and (not roles or victim.role in roles):
            known = processes.get((victim.role, victim.pid))
            names = dict.fromkeys((known.workers if known else ()) + victim.workers)
            processes[victim.role, victim.pid] = msgspec.structs.replace(victim, workers=tuple(names))
    return [processes[key] for key in sorted(processes)]


async def _live(connection: Connection) -> list[Victim]:
    host = socket.gethostname()
    live = [
        Victim(entry.role, entry.pid, (name,), tuple(entry.mailboxes), entry.quarantine)
        for name, entry in (await live_workers(connection)).items()
        if entry.host == host
    ]
    prefix = f"{EXECUTOR}-{host}-"
    for name in await live_executors(connection):
        pid = name.removeprefix(prefix).partition("-")[0]
        if name.startswith(prefix) and pid.isdigit():
            live.append(Victim(EXECUTOR, int(pid), (name,)))
    return live


def _is_own_worker(pid: int) -> bool:
    """Return whether a process is a running worker of this user: names in Redis outlive processes, and pids come again."""
    try:
        process = Path(f"/proc/{pid}")
        if not process.parent.joinpath("self").exists():
            os.kill(pid, 0)  # without /proc it must do that signals may be sent to it
            return True
        state = process.joinpath("stat").read_text().rpartition(")")[2].split()[0]
        command = process.joinpath("cmdline").read_bytes()
        return process.stat().st_uid == os.getuid() and state not in "TZ" and (b"gymq" in command or b"celery" in command)
    except OSError:
        return False


async def held(shards: Shards, victim: Victim) -> set[str]:
    """Return the work items that a process holds.

    Args:
        shards: connections to all shards.
        victim: the process.

    Raises:
        Outage: a connection broke.
    """
    read = _begun if victim.role == EXECUTOR else _pending
    return set().union(*await shards.each(lambda connection: read(connection, victim)))


async def _begun(connection: Connection, victim: Victim) -> set[str]:
    flat = await connection.send("HGETALL", connection.keys.isolated)
    return {call.decode() for call, worker in zip(flat[::2], flat[1::2], strict=True) if worker.decode() in victim.workers}


async def _pending(connection: Connection, victim: Victim) -> set[str]:
    items: set[str] = set()
    keys = connection.keys
    streams = [key(mailbox) for mailbox in victim.mailboxes for key in (keys.mailbox, keys.retry, keys.suspects)]
    private = [(keys.private_mailbox(worker), worker) for worker in victim.workers]
    for stream, worker in itertools.chain(itertools.product(streams, victim.workers), private):
        try:
            entries = await connection.send("XPENDING", stream, keys.GROUP, "-", "+", _MAX_PENDING, worker)
        except GymqError:
            continue  # no worker has read it yet
        for entry in entries:
            for _, fields in await connection.send("XRANGE", stream, entry[0], entry[0]):
                items.add(work_item(fields))
    return items


def work_item(fields: list[bytes]) -> str:
    """Return the work item that a message of a mailbox stands for.

    Args:
        fields: the message's names and values.
    """
    return f"{fields[1].decode()}:{int(fields[3])}" if fields[0] == b"r" else decode_call(fields[1]).id


async def unanswered(shards: Shards, items: Collection[str]) -> set[str]:
    """Return those of some work items that are still to be answered or done.

    Args:
        shards: connections to all shards.
        items: the work items.

    Raises:
        Outage: a connection broke.
    """
    left: set[str] = set()
    for item in items:
        rollout, step, *n = item.split(":")
        connection = shards.connections[RolloutId.parse(place(rollout)).shard(len(shards.connections))]
        key = connection.keys.rollout(rollout)
        if n:
            if await connection.send("HEXISTS", key, f"c{step}.{n[0]}"):
                left.add(item)
        else:
            version = await connection.send("HGET", key, "v")
            if version is not None and int(version) <= int(step):
                left.add(item)
    return left
