"""The worker registry of a shard: an entry for each worker that reads mailboxes, and its lease, a key that it renews.

Executors read no mailbox: they have a lease and no entry.
"""

from __future__ import annotations

import secrets

import msgspec

from gymq.errors import UNREADABLE
from gymq.store.connection import Connection
from gymq.store.sharded import scan
from gymq.wire.activity import Activity

#: Prefix of a worker's entry from when it was declared dead until its mail is handed back.
DEAD = b"dead"


class WorkerEntry(msgspec.Struct):
    """A worker's entry, as it wrote it.

    Args:
        role: its role.
        host, pid: its process, which has an entry on each shard.
        mailboxes: the names of those that it reads.
        quarantine: it reads suspects only, and comes and goes with them.
        started: seconds since the epoch.
        version: of the weights that a model worker samples with, 0 before it got any; None: its backend takes none.
        loading: the version that it loads at the moment, or None.
        load: figures of a backend that hosts its model, by name.
        starting: the mailboxes that it will read once it has loaded what it needs; until then it reads none.
        activity: what its process did in the last minute, as of its last heartbeat.
    """

    role: str
    host: str
    pid: int
    mailboxes: list[str]
    quarantine: bool = msgspec.field(name="alone", default=False)
    started: float = 0.0
    version: int | None = None
    loading: int | None = None
    load: dict[str, float] = {}
    starting: list[str] = []
    activity: Activity | None = None


class Registration(msgspec.Struct, frozen=True):
    """A field of the registry, whose value anybody may have written who may write to Redis.

    Args:
        worker: the worker's name.
        data: its entry, encoded; after `DEAD` once it was declared dead.
        alive: its lease exists.
    """

    worker: str
    data: bytes
    alive: bool

    @property
    def declared_dead(self) -> bool:
        """Whether another worker has declared it dead and is to hand back its mail."""
        return self.data.startswith(DEAD)

    def entry(self) -> WorkerEntry:
        """Decode the worker's entry.

        Raises:
            UNREADABLE: it is none.
        """
        return msgspec.json.decode(self.data.removeprefix(DEAD), type=WorkerEntry)


def new_name(role: str, host: str, pid: int) -> str:
    """Return a name for a worker's next incarnation, by which Redis knows what it holds.

    Args:
        role: its role.
        host: its machine.
        pid: its process.
    """
    return f"{role}-{host}-{pid}-{secrets.token_hex(4)}"


async def registrations(connection: Connection) -> list[Registration]:
    """Read all of the registry, the dead included.

    Raises:
        Outage: the connection broke.
    """
    flat = await connection.send("HGETALL", connection.keys.workers)
    workers = [name.decode() for name in flat[::2]]
    leases = await connection.send("MGET", *map(connection.keys.alive, workers)) if workers else []
    return [
        Registration(worker, data, lease is not None) for worker, data, lease in zip(workers, flat[1::2], leases, strict=True)
    ]


async def live_workers(connection: Connection) -> dict[str, WorkerEntry]:
    """Return the entries of the shard's live workers by name; what no worker wrote is left out.

    Raises:
        Outage: the connection broke.
    """
    entries: dict[str, WorkerEntry] = {}
    for one in await registrations(connection):
        if one.alive and not one.declared_dead:
            try:
                entries[one.worker] = one.entry()
            except UNREADABLE:
                continue
    return entries


async def live_executors(connection: Connection) -> list[str]:
    """Return the names of the executors with a lease on a shard.

    Raises:
        Outage: the connection broke.
    """
    prefix = connection.keys.alive("")
    return [key.removeprefix(prefix) for key in await scan(connection, f"{prefix}executor-*")]
