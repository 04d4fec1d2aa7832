"""All shards, as clients see them: a run's definition is on every shard, and its counters are sums over all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

import msgspec

from gymq.errors import RunClosed, UnknownName, UsageError
from gymq.settings import Settings
from gymq.store import runs, scripts
from gymq.store.connection import AccessRefused, Connection
from gymq.store.keys import Keys
from gymq.store.run_status import RunStatus, merge, read_status
from gymq.store.runs import RunConfig
from gymq.wire.ids import PartId

T = TypeVar("T")

#: The `maxmemory-policy` of a server that refuses writes when its memory is full, and drops nothing.
NO_EVICTION = "noeviction"

#: Keys that one SCAN looks at: a millisecond of the server's time.
_SCAN = 5000


class Shards:
    """A connection to each shard, for one coroutine at a time; `async with` opens all of them and closes them.

    Args:
        settings: where they are.
        name: the connections' name in the servers' client lists.

    Raises:
        UsageError: the address cannot be understood.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        first = Connection(settings.at(0), name)
        self.connections = [first, *(Connection(settings.at(shard), name) for shard in range(1, first.shards))]

    async def __aenter__(self) -> Self:
        """Open all connections.

        Raises:
            ServerUnreachable, UsageError: as `connect`.
        """
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close all connections."""
        await self.close()

    @property
    def first(self) -> Connection:
        """Shard 0; it holds what exists once for all shards."""
        return self.connections[0]

    async def each(self, work: Callable[[Connection], Awaitable[T]]) -> list[T]:
        """Run work on every shard at the same time, and return the results in the shards' order."""
        return list(await asyncio.gather(*map(work, self.connections)))

    async def connect(self) -> None:
        """Open all connections.

        Raises:
            ServerUnreachable: a shard cannot be reached.
            UsageError: a server is another shard than here.
        """
        await self.each(Connection.connect)
        await self.each(check)

    async def reconnect(self) -> None:
        """Open all connections again, however long that takes."""
        await self.each(Connection.reconnect)

    async def close(self) -> None:
        """Close all connections."""
        await self.each(Connection.close)

    # A run on all shards; see `gymq.store.runs`, whose functions do the same on one.

    async def create(self, config: RunConfig) -> bool:
        """Create a run, or find it as it was created; see `run.create`."""
        new = await runs.create(self.first, config)
        # Callees cache by the time of creation: it is the same on all shards.
        born = (await runs.load_config(self.first, config.name)).created
        for connection in self.connections[1:]:
            await runs.create(connection, msgspec.structs.replace(config, created=born))
        return new

    async def declare(self, name: str, consumer: str) -> int | None:
        """Declare a consumer; return the number of finished rollouts that it will not see, None without such a run.

        Args:
            name: the run's name.
            consumer: the consumer's name.
        """
        missed = await self.each(lambda connection: connection.insist(scripts.declare_consumer(name, consumer)))
        known = [count for count in missed if count is not None]
        return sum(known) if len(known) == len(missed) else None

    async def close_run(self, name: str) -> None:
        """Say that the run gets no more rows; see `runs.close`."""
        await self.each(lambda connection: runs.close(connection, name))

    async def reopen(self, name: str) -> None:
        """Let a closed run take rows again, unless it is done everywhere; see `runs.reopen`."""
        states = await self.each(lambda connection: connection.send("HGET", connection.keys.run(name), "state"))
        elsewhere = not set(states) <= {b"done", b"cancelled", None}
        await self.each(lambda connection: runs.reopen(connection, name, elsewhere))

    async def drop_consumer(self, name: str, consumer: str, ttl: int) -> None:
        """Forget a consumer; see `runs.drop_consumer`.

        Args:
            name: the run's name.
            consumer: the consumer's name.
            ttl: seconds for which the run is kept if it is done by this.
        """
        await self.each(lambda connection: runs.drop_consumer(connection, name, consumer, ttl))

    async def cancel(self, name: str) -> int:
        """Cancel a run; return the number of rollouts in flight."""
        return sum(await self._where_open(lambda connection: runs.cancel(connection, name)))

    async def cancel_some(self, name: str, which: list[PartId]) -> tuple[int, int]:
        """Cancel groups and rollouts, each on its shard; see `runs.cancel_some`.

        Args:
            name: the run's name.
            which: the groups and rollouts.
        """
        live = waiting = 0
        for connection in self.connections:
            part = [target for target in which if target.shard(connection.shards) == connection.shard]
            if part:
                cancelled = await runs.cancel_some(connection, name, part)
                live, waiting = live + cancelled[0], waiting + cancelled[1]
        return live, waiting

    async def pause(self, name: str, paused: bool) -> None:
        """Pause a run, or let it go on; see `runs.pause`.

        Args:
            name: the run's name.
            paused: False: let it go on.
        """
        await self._where_open(lambda connection: runs.pause(connection, name, paused))

    async def bound(self, name: str, failures: int | None = None, rollouts: int | None = None) -> None:
        """Bound what a run admits, each shard a part of it; see `runs.bound`.

        Args:
            name: the run's name.
            failures: see `runs.bound`.
            rollouts: see `runs.bound`.
        """
        parts = [None if most is None else -(-most // len(self.connections)) for most in (failures, rollouts)]
        await self.each(lambda connection: runs.bound(connection, name, *parts))

    async def stop(self, name: str, reason: str) -> None:
        """Admit no more rollouts of a run; see `runs.stop`.

        Args:
            name: the run's name.
            reason: why.
        """
        await self.each(lambda connection: runs.stop(connection, name, reason))

    async def _where_open(self, work: Callable[[Connection], Awaitable[T]]) -> list[T]:
        """Run work on the shards on which a run goes on: it may be done on one before the others.

        Raises:
            RunClosed: it goes on nowhere.
        """

        async def attempt(connection: Connection) -> T | RunClosed:
            try:
                return await work(connection)
            except RunClosed as error:
                return error

        answers = await self.each(attempt)
        good = [answer for answer in answers if not isinstance(answer, RunClosed)]
        for answer in answers:
            if isinstance(answer, RunClosed) and not good:
                raise answer
        return good

    async def remove(self, name: str) -> None:
        """Forget a run; see `run.remove`."""
        await self.each(lambda connection: runs.remove(connection, name))

    async def status(self, name: str) -> RunStatus:
        """Return how far a run is, over all shards.

        Raises:
            UnknownName: there is no such run.
        """

        async def read(connection: Connection) -> RunStatus | UnknownName:
            try:
                return await read_status(connection, name)
            except UnknownName as error:
                return error  # a done run lapses on one shard a moment before the others

        answers = await self.each(read)
        parts = [answer for answer in answers if isinstance(answer, RunStatus)]
        for answer in answers:
            if isinstance(answer, UnknownName) and not parts:
                raise answer
        return merge(parts)

    async def names(self) -> list[str]:
        """Return the names of all runs that are not done, oldest first."""
        return list(dict.fromkeys(name for names in await self.each(runs.names) for name in names))


async def reach(settings: Settings) -> None:
    """Reach every shard once, and check it, before anything is started.

    Raises:
        ServerUnreachable: a shard does not answer.
        UsageError: it is another shard, or evicts keys.
    """
    async with Shards(settings, "gymq-check") as shards:
        await shards.each(_check_eviction)


async def _check_eviction(connection: Connection) -> None:
    try:
        said = (await connection.send("INFO", "memory")).decode()
    except AccessRefused:
        return  # the users that `gymq acl` makes may not ask: whoever made them knows the server
    memory = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    policy = memory.get("maxmemory_policy", NO_EVICTION)
    if policy != NO_EVICTION and memory.get("maxmemory", "0") != "0":
        raise UsageError(
            f"--redis: {connection.address.place} evicts keys when its memory is full, and rollouts with them: set its "
            f"maxmemory-policy, which is {policy}, to {NO_EVICTION}"
        )


async def check(connection: Connection) -> None:
    """Check that a server is the shard as which it is named here; the first process decides.

    Raises:
        UsageError: it is another shard, or one of another number of shards.
    """
    if connection.address.kind == "cluster" and connection.shard:
        return  # shard 0 is checked for all
    key, here = Keys().shards, f"{connection.shard} of {connection.shards}"
    theirs = await connection.send("GET", key)
    if theirs is None and not await connection.send("SETNX", key, here):
        theirs = await connection.send("GET", key)
    if theirs is not None and theirs.decode() != here:
        raise UsageError(
            f"--redis: this server is shard {theirs.decode()}, and here it is named as shard {here}: all processes must name "
            f"the same shards in the same order (if no run is left and the shards have changed, delete the key {key})"
        )


async def scan(connection: Connection, pattern: str) -> list[str]:
    """Return the keys of a server that match a pattern, sorted.

    Args:
        connection: a connection.
        pattern: its only special character is `*`, for any text.
    """
    keys: set[str] = set()
    cursor: Any = 0
    while True:
        cursor, some = await connection.send("SCAN", cursor, "MATCH", _literal(pattern), "COUNT", _SCAN)
        keys.update(key.decode() for key in some)
        if int(cursor) == 0:
            return sorted(keys)


def _literal(pattern: str) -> str:
    """Escape a pattern's special characters but `*`."""
    return "".join(f"\\{char}" if char in "[]?^\\" else char for char in pattern)
