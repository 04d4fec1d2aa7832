"""Consuming: a stream of finished rollouts, or of whole groups, while the run goes on.

Every declared consumer sees everything, at its own pace. Unacknowledged rollouts are delivered again when it starts again.
"""

from __future__ import annotations

import asyncio
import logging
import re
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Literal

from gymq.aio import LoopThread, cancel_and_wait
from gymq.client.group_assembly import GroupAssembly
from gymq.client.place import Place
from gymq.client.rollout_set import RolloutSet
from gymq.client.staleness import StalenessLimit
from gymq.client.stream import ShardStream
from gymq.errors import UsageError
from gymq.settings import Settings
from gymq.store.topology import parse
from gymq.wire.consumer_member import ONLY_MEMBER
from gymq.wire.rollout import Group, Rollout

log = logging.getLogger(__name__)

#: Milliseconds that a read waits for more.
BLOCK_MS = 500

#: Seconds that an acknowledgement waits for each of several shards; one that is away is told later.
ACK_WAIT = 2.0

#: Characters of a consumer's or member's name.
_MAX_NAME = 100
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{_MAX_NAME}}}")


def check_consumer(name: str, what: str = "consumer") -> None:
    """Check a consumer's name.

    Args:
        name: the name.
        what: what is named so.

    Raises:
        UsageError: it is too long, or has other characters.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{what} {name[:_MAX_NAME]!r}: use 1 to {_MAX_NAME} letters, digits, '-' or '_'")


class Results:
    """One consumer's stream of results, asynchronous.

    Args:
        run: the run's name.
        consumer: the consumer's name; each consumer sees everything.
        unit: what is delivered: `rollout` or `group`.
        settings: where Redis is; from the environment if not given.
        max_staleness: how many policy versions the oldest token of what is delivered may be behind the run's model at that
            moment; what is older is acknowledged and passed over, a group as a whole. None: no limit.
        member: which part of the consumer this process is: members share its rollouts, each gets a part. The newest process
            of a member is the member; the one before it gets `MemberReplaced`.

    Attributes:
        stale: rollouts that were passed over because they, or members of their group, were too old.
        missed: finished rollouts that were trimmed before this consumer was declared.
        seen: the rollouts that were delivered; none is delivered twice.
    """

    def __init__(
        self,
        run: str,
        consumer: str,
        unit: Literal["rollout", "group"] = "rollout",
        settings: Settings | None = None,
        max_staleness: int | None = None,
        member: str = ONLY_MEMBER,
    ) -> None:
        if max_staleness is not None and (type(max_staleness) is not int or max_staleness < 0):
            raise UsageError(f"max_staleness {max_staleness!r}: use a whole number of versions, 0 or more, or None")
        if unit not in ("rollout", "group"):
            raise UsageError(f"unit {unit!r}: use 'rollout' or 'group'")
        check_consumer(consumer)
        check_consumer(member, "member")
        if unit == "group" and member != ONLY_MEMBER:
            raise UsageError(f"member {member!r}: groups come whole to one member only; leave it out, or read single rollouts")
        self.run = run
        self.consumer = consumer
        self.missed = 0
        self._unit = unit
        settings = settings or Settings.from_environment()
        self.seen = RolloutSet(run)
        self._streams = [
            ShardStream(settings.at(shard), run, consumer, member, self.seen) for shard in range(len(parse(settings.redis_url)))
        ]
        self._reads: dict[ShardStream, asyncio.Task[list[Rollout] | None]] = {}
        self._acknowledging: set[asyncio.Task[None]] = set()
        self._waiting: deque[Rollout] = deque()
        self._open: dict[str, list[Rollout]] = {}
        self._groups = GroupAssembly(self._open)
        self._ended_again: deque[str] = deque()
        self.stale = 0
        self._limit = None if max_staleness is None else StalenessLimit(settings, run, max_staleness)
        self._passed: list[Rollout] = []
        # Warns once, when the consumer is closed or forgotten, or the process ends; it must not keep the consumer alive.
        self._warn: weakref.finalize[..., Results] | None = None

    async def connect(self, place: Place | None = None) -> int:
        """Connect, and see that the run exists.

        Args:
            place: where a file sink writes.

        Returns:
            The run's backlog: how many rollouts its consumers may be behind.

        Raises:
            UnknownName: there is no such run.
            UsageError: the consumer writes elsewhere.
            ServerUnreachable: Redis cannot be reached.
        """
        shards = await asyncio.gather(*(stream.connect(place) for stream in self._streams))
        self._groups.samples = shards[0][0]
        return sum(backlog for _, backlog in shards)

    async def start(self) -> None:
        """Connect, declare the consumer, and become its member.

        Raises:
            UnknownName: there is no such run.
            ServerUnreachable: Redis cannot be reached.
        """
        await self.connect()
        await self.join()

    async def join(self, place: Place | None = None) -> Place | None:
        """Declare the consumer, and become its member: the process that was it can neither read on nor acknowledge.

        Args:
            place: where a file sink writes; what `resume` was told stands there.

        Returns:
            Where the consumer wrote before, if it is a file sink.

        Raises:
            OtherFile: another host's file holds what this one does not.
        """
        self.missed = sum(await asyncio.gather(*(stream.declare() for stream in self._streams)))
        places = [await stream.join(place) for stream in self._streams]
        return places[0]

    async def read(self, block: int = BLOCK_MS) -> list[Rollout] | None:
        """Return the next finished rollouts; an empty list after a while without any; None when no more will come.

        Args:
            block: milliseconds to wait for more.

        Raises:
            MemberReplaced: another process is the member now.
        """
        if len(self._streams) == 1:
            rollouts = await self._streams[0].read(block)
            self._note_ended_again(self._streams[0])
            return rollouts
        # A read of each shard is always under way: none waits for another, and one whose server is away holds up nobody.
        for stream in self._streams:
            if stream not in self._reads and not stream.over:
                self._reads[stream] = asyncio.create_task(stream.read(block))
        if self._reads:
            await asyncio.wait(self._reads.values(), timeout=block / 1000, return_when=asyncio.FIRST_COMPLETED)
        batch: list[Rollout] = []
        for stream in [stream for stream, task in self._reads.items() if task.done()]:
            batch += self._reads.pop(stream).result() or []
            self._note_ended_again(stream)
        return batch if batch or not all(stream.over for stream in self._streams) else None

    async def unacknowledged(self) -> list[Rollout]:
        """Return the rollouts that were delivered before and not acknowledged, unless this process has them already."""
        parts = await asyncio.gather(*(stream.unacknowledged() for stream in self._streams))
        for stream in self._streams:
            self._note_ended_again(stream)
        return [rollout for part in parts for rollout in part]

    def _note_ended_again(self, stream: ShardStream) -> None:
        # With the rollouts that were read before them, never ahead of these.
        groups = stream.take_ended_again()
        if self._unit == "group":
            self._ended_again += groups

    @property
    def repeated(self) -> int:
        """Rollouts that came again."""
        return sum(stream.repeated for stream in self._streams)

    @property
    def rolled_back(self) -> int:
        """Finished rollouts that Redis had lost: it came back with less than it had confirmed.

        They end again, and are not delivered again.
        """
        return sum(stream.rolled_back for stream in self._streams)

    def resume(self, seen: RolloutSet, newest: int, rollout: str) -> None:
        """Resume where another process has stopped.

        Args:
            seen: what was delivered to it.
            newest: the highest commit number among that; shards number their commits each for itself, so with several of
                them it tells nothing, and only what is lost from now on is noticed.
            rollout: the rollout that has it.
        """
        self.seen = seen
        for stream in self._streams:
            stream.resume(seen, *((newest, rollout) if len(self._streams) == 1 else (0, "")))

    async def acknowledge(self, rollouts: Iterable[Rollout]) -> bool:
        """Acknowledge rollouts; returns whether the run is done.

        A shard whose server is away is told later, as long as this process lives.

        Raises:
            MemberReplaced: another process is the member now: it gets what was not acknowledged.
        """
        parts: list[list[Rollout]] = [[] for _ in self._streams]
        for rollout in rollouts:
            parts[rollout.place.shard(len(parts))].append(rollout)
        if len(parts) == 1:
            await self._streams[0].acknowledge(parts[0])
        else:
            # A shard that was read to its end is told so, even if nothing is left to acknowledge: the run is done there.
            tasks = {
                asyncio.create_task(stream.acknowledge(part))
                for stream, part in zip(self._streams, parts, strict=True)
                if part or stream.over
            }
            self._acknowledging |= tasks
            if tasks:
                await asyncio.wait(tasks, timeout=ACK_WAIT)
            for task in [task for task in self._acknowledging if task.done()]:
                self._acknowledging.remove(task)
                task.result()
        return all(stream.done for stream in self._streams)

    async def ack(self, *items: Rollout | Group) -> None:
        """Acknowledge rollouts or groups: they are not delivered again."""
        rollouts: list[Rollout] = []
        for item in items:
            rollouts += item.rollouts if isinstance(item, Group) else [item]
        await self.acknowledge(rollouts)

    async def __aiter__(self) -> AsyncIterator[Any]:
        await self.start()
        if self._warn is None:
            undelivered = (self._waiting, self._open, self._passed)
            self._warn = weakref.finalize(self, _warn_of_unacknowledged, self.run, self.consumer, self._streams, *undelivered)
        batch: list[Rollout] | None = await self.unacknowledged()
        while batch is not None:
            # Rollouts that were read and not yielded outlive the iteration: a second one begins with them.
            self._waiting += batch
            for item in self._deliverable():
                if not await self._too_old(item):
                    yield item
            if self._passed:
                await self._pass_over()
            batch = await self.read()
        while group := self._groups.take_any():
            if not await self._too_old(group):
                yield group
        await self._pass_over()
        await self._disconnect()  # what was delivered may still be acknowledged

    def _deliverable(self) -> Iterator[Rollout | Group]:
        """Yield the rollouts that wait, or the groups that get no more members."""
        while self._waiting:
            rollout = self._waiting.popleft()
            item = rollout if self._unit == "rollout" else self._groups.add(rollout)
            if item is not None:
                yield item
        while self._ended_again:
            group = self._groups.take(self._ended_again.popleft())
            if group is not None:
                yield group

    async def _pass_over(self) -> None:
        """Acknowledge what was too old to be delivered."""
        await self.acknowledge(self._passed)
        self._passed.clear()  # in place: the warning counts them

    async def _too_old(self, item: Rollout | Group) -> bool:
        """Return whether an item is too old to be delivered; if so, it is acknowledged before more is read."""
        members = item.rollouts if isinstance(item, Group) else [item]
        if self._limit is None or not await self._limit.exceeded(members):
            return False
        self.stale += len(members)
        self._passed += members
        return True

    async def close(self) -> None:
        """Close the connections, and warn of unacknowledged rollouts: they are delivered again to the next process."""
        if self._warn is not None:
            self._warn()
        await self._disconnect()

    async def _disconnect(self) -> None:
        await cancel_and_wait([*self._reads.values(), *self._acknowledging])
        self._reads.clear()
        for stream in self._streams:
            await stream.close()
        if self._limit is not None:
            await self._limit.close()


def _warn_of_unacknowledged(
    run: str,
    consumer: str,
    streams: Sequence[ShardStream],
    waiting: Sequence[Rollout],
    gathering: dict[str, list[Rollout]],
    passed: Sequence[Rollout],
) -> None:
    """Warn of the rollouts that the iteration has yielded and that were not acknowledged.

    Args:
        run: the run's name.
        consumer: the consumer's name.
        streams: what was delivered, by shard.
        waiting: the rollouts among that which were not yielded yet.
        gathering: likewise, those of groups that are not whole.
        passed: likewise, those that were too old.
    """
    count = sum(stream.held for stream in streams) - len(waiting) - sum(map(len, gathering.values())) - len(passed)
    if count > 0:
        log.warning(
            "consumer %r of run %r ends with %d rollouts that were delivered and not acknowledged: the run keeps them, and the "
            "next consumer of that name gets them again; call .ack(item) once an item is used",
            consumer,
            run,
            count,
        )


class SyncResults:
    """`Results` for scripts and notebooks: `for` and `async for` work, whether a loop is running or not."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._loop = LoopThread("gymq-consumer")

    @property
    def missed(self) -> int:
        """Finished rollouts that were trimmed before this consumer was declared."""
        return self._results.missed

    @property
    def stale(self) -> int:
        """Rollouts that were passed over because they, or members of their group, were too old."""
        return self._results.stale

    def __iter__(self) -> Iterator[Any]:
        items = aiter(self._results)
        while (item := self._loop.run(anext(items, None))) is not None:
            yield item

    async def __aiter__(self) -> AsyncIterator[Any]:
        items = aiter(self._results)
        while (item := await self._loop.run_async(anext(items, None))) is not None:
            yield item

    def ack(self, *items: Rollout | Group) -> None:
        """Acknowledge rollouts or groups: they are not delivered again."""
        self._loop.run(self._results.ack(*items))

    async def ack_async(self, *items: Rollout | Group) -> None:
        """Acknowledge rollouts or groups, while the caller's loop goes on."""
        await self._loop.run_async(self._results.ack(*items))

    def close(self) -> None:
        """Close the connection, and warn of unacknowledged rollouts: they are delivered again to the next process."""
        self._loop.run(self._results.close())
        self._loop.close()

    async def close_async(self) -> None:
        """Close the connection, while the caller's loop goes on."""
        await self._loop.run_async(self._results.close())
        self._loop.close()


def consume(
    run: str,
    consumer: str = "trainer",
    unit: Literal["rollout", "group"] = "rollout",
    settings: Settings | None = None,
    max_staleness: int | None = None,
    member: str = ONLY_MEMBER,
) -> SyncResults:
    """Stream a run's finished rollouts, or its groups as they become whole; for `for` and `async for`.

    Args:
        run: the run's name.
        consumer: who reads; each consumer sees everything.
        unit: `rollout` or `group`.
        settings: where Redis is; from the environment if not given.
        max_staleness, member: as of `Results`.
    """
    return SyncResults(Results(run, consumer, unit, settings, max_staleness, member))
