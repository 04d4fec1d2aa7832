"""The mailboxes of an installation, and the executors' queue: what waits there, for how long, and what is taken."""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from gymq.celery.queues import EXECUTOR, ISOLATED_QUEUE
from gymq.errors import UNREADABLE, GymqError
from gymq.settings import Settings
from gymq.store.connection import Connection
from gymq.store.sharded import Shards
from gymq.wire.calls import decode_call

#: What kombu puts behind a queue's name for the tasks of normal priority; those of the highest stand under the name alone.
_NORMAL_PRIORITY = "\x06\x169"


class Mailbox(msgspec.Struct):
    """A mailbox, or the queue of isolated calls.

    Args:
        name: `agent`, `model:SPEC`, `resource:ENVIRONMENT`, `executor`; `@WORKER`: the private one of a worker, while messages
            lie there.
        waiting: messages that no worker has taken.
        taken: messages that workers are busy with.
        workers: live workers that read it.
        newer: messages that its workers are too old to read.
        oldest: seconds for which the oldest message has waited; 0: none waits, or it is not known.
    """

    name: str
    waiting: int
    taken: int
    workers: int
    newer: int = 0
    oldest: float = 0.0


async def read_mailbox(shards: Shards, name: str, workers: int) -> Mailbox:
    """Return a mailbox, over all shards.

    Args:
        shards: connections to all shards.
        name: its name.
        workers: the workers that read it.
    """
    length = taken = newer = 0
    oldest = now = time.time()
    for connection in shards.connections:
        keys = connection.keys
        for stream in (keys.mailbox(name), keys.retry(name), keys.suspects(name)):
            if entries := await connection.send("XLEN", stream):
                length += entries
                # The first worker makes the group; messages may come before it.
                read = b"-"
                for group in await connection.send("XINFO", "GROUPS", stream):
                    facts = dict(zip(group[::2], group[1::2], strict=True))
                    taken += facts[b"pending"]
                    read = b"(" + facts[b"last-delivered-id"]
                for entry, _ in await connection.send("XRANGE", stream, read, "+", "COUNT", 1):
                    oldest = min(oldest, int(entry.partition(b"-")[0]) / 1000)
        newer += await connection.send("XLEN", keys.newer(name))
    return Mailbox(name, max(length - taken, 0) + newer, taken, workers, newer, now - oldest)


async def private_mailboxes(connection: Connection) -> list[Mailbox]:
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


async def executor_queue(shards: Shards, executors: int) -> Mailbox:
    """Return the queue of isolated calls: those that wait in Celery's broker, and those that executors have begun.

    Args:
        shards: connections to all shards.
        executors: live executors.

    Raises:
        Outage, ServerUnreachable: the broker or a shard is away.
    """
    taken = sum(await shards.each(lambda connection: connection.send("HLEN", connection.keys.isolated)))
    async with _broker(shards) as broker:
        return Mailbox(EXECUTOR, await _queued(broker), taken, executors)


async def oldest_isolated(shards: Shards) -> float:
    """Return for how many seconds the oldest isolated call has waited for an executor; 0: none waits.

    Args:
        shards: connections to all shards.

    Raises:
        Outage, ServerUnreachable: the broker is away.
    """
    oldest = now = time.time()
    async with _broker(shards) as broker:
        for priority in ("", _NORMAL_PRIORITY):
            task = await broker.send("LINDEX", ISOLATED_QUEUE + priority, -1)
            with suppress(*UNREADABLE):
                if task is not None:
                    arguments, *_ = msgspec.json.decode(msgspec.json.decode(task, type=_Task).body)
                    oldest = min(oldest, decode_call(b64decode(arguments[0])).queued)
    return now - oldest


class _Task(msgspec.Struct):
    """A task as kombu keeps it in a list."""

    body: str


@asynccontextmanager
async def _broker(shards: Shards) -> AsyncIterator[Connection]:
    """Connect to Celery's broker: the first shard, unless it is a server of its own."""
    settings = shards.settings
    if not settings.broker_url:
        yield shards.first
        return
    broker = Connection(Settings(redis_url=settings.broker_url), "gymq-broker")
    try:
        await broker.connect()
        yield broker
    finally:
        await broker.close()


async def _queued(broker: Connection) -> int:
    lengths = [await broker.send("LLEN", ISOLATED_QUEUE + priority) for priority in ("", _NORMAL_PRIORITY)]
    return sum(lengths)
