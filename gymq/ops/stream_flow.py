"""The flow through mailboxes: how many messages have left each, and for how long the oldest in work has been in work."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from gymq.errors import UNREADABLE, GymqError
from gymq.store.connection import Connection
from gymq.store.sharded import Shards
from gymq.store.worker_registry import live_workers


class Flow(msgspec.Struct):
    """The flow through one mailbox, over all shards, private mailboxes included.

    Args:
        served: messages that have left each of its streams, by shard and key; empty before Redis 7, which does not count.
        oldest_taken: seconds since the oldest message in work was taken; 0: none is.
    """

    served: dict[tuple[int, str], int] = {}
    oldest_taken: float = 0.0


async def read_flows(shards: Shards, mailboxes: list[str]) -> dict[str, Flow]:
    """Return the flow through mailboxes.

    Args:
        shards: connections to all shards.
        mailboxes: their names; `@WORKER` is no name: its mail is that of what the worker serves.
    """
    flows = {name: Flow() for name in mailboxes}
    for connection in shards.connections:
        keys = connection.keys
        for name in mailboxes:
            for stream in (keys.mailbox(name), keys.retry(name), keys.suspects(name)):
                await _read(connection, stream, flows[name])
        for worker, name in (await private_owners(connection)).items():
            await _read(connection, keys.private_mailbox(worker), flows.setdefault(name, Flow()))
    return flows


async def private_owners(connection: Connection) -> dict[str, str]:
    """Return the mailbox for which each private mailbox of a shard stands, by its worker.

    That of a worker that reads several is the role alone: one message in it may be for any of them.
    """
    workers = await live_workers(connection)
    owners: dict[str, str] = {}
    for name in await connection.send("HKEYS", connection.keys.private):
        entry = workers.get(name.decode(errors="replace"))
        if entry is not None:
            owners[name.decode()] = entry.mailboxes[0] if len(entry.mailboxes) == 1 else entry.role
    return owners


async def _read(connection: Connection, stream: str, flow: Flow) -> None:
    if not await connection.send("EXISTS", stream):
        return
    with suppress(GymqError, *UNREADABLE):  # it is gone by now, or no worker has made its group yet
        flat = await connection.send("XINFO", "STREAM", stream)
        facts = dict(zip(flat[::2], flat[1::2], strict=True))
        if b"entries-added" in facts:
            flow.served[connection.shard, stream] = facts[b"entries-added"] - facts[b"length"]
        for _, _, idle, _ in await connection.send("XPENDING", stream, connection.keys.GROUP, "-", "+", 1):
            flow.oldest_taken = max(flow.oldest_taken, idle / 1000)
