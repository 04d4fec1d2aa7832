"""Consuming: a stream of finished rollouts, or of whole groups, while the run goes on.

Every declared consumer sees everything, at its own pace. What it has not acknowledged comes back when it starts again.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Literal

from gymq.errors import GymqError, UnknownName, UsageError
from gymq.link import Link, Outage
from gymq.rollout import Group, Rollout
from gymq.seen import Seen
from gymq.settings import Settings

#: Finished rollouts read at once.
BATCH = 500

#: Milliseconds that a read waits for more.
BLOCK = 500

#: The names in each entry: rollout, whether it is its group's last, commit number, record.
FIELDS = [b"r", b"l", b"n", b"b"]

#: Digits of a row, a sample or a commit number: what is seen is kept as bits, and a forged number must not fill the memory.
MAX_DIGITS = 9

#: The name of the one reader within a consumer.
READER = "reader"

#: Characters of a consumer's name.
_MAX_NAME = 100
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{_MAX_NAME}}}")


def check_consumer(name: str) -> None:
    """Raises UsageError if a consumer cannot be called so."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"consumer {name[:_MAX_NAME]!r}: use 1 to {_MAX_NAME} letters, digits, '-' or '_'")


class Results:
    """One consumer's stream of results, asynchronous.

    Args:
        run: the run's name.
        consumer: the consumer's name; one process at a time uses it.
        unit: what is delivered: `rollout` or `group`.
        settings: where Redis is; from the environment if not given.

    Attributes:
        missed: finished rollouts that were trimmed before this consumer was declared.
        seen: the rollouts that were delivered; none is delivered twice.
        repeated: rollouts that came again.
        rolled_back: finished rollouts that Redis had lost: it came back with less than it had confirmed. They end again,
            and are not delivered again.
    """

    def __init__(
        self, run: str, consumer: str, unit: Literal["rollout", "group"] = "rollout", settings: Settings | None = None
    ) -> None:
        if unit not in ("rollout", "group"):
            raise UsageError(f"unit {unit!r}: use 'rollout' or 'group'")
        check_consumer(consumer)
        self.run = run
        self.consumer = consumer
        self.missed = 0
        self._unit = unit
        self._settings = settings or Settings.from_environment()
        self._link = Link(self._settings, f"gymq-consumer-{consumer}")
        self.seen = Seen(run)
        self.repeated = 0
        self.rolled_back = 0
        self._newest = 0
        # What was delivered and not acknowledged: its entries, more than one after a roll-back.
        self._held: dict[str, list[bytes]] = {}
        self._waiting: deque[Rollout] = deque()
        self._open: dict[str, list[Rollout]] = {}
        self._samples = 1

    async def connect(self) -> int:
        """Connect, and see that the run exists.

        Returns:
            The run's backlog: how many rollouts its consumers may be behind.

        Raises:
            UnknownName: there is no such run.
            ServerUnreachable: Redis cannot be reached.
        """
        await self._link.connect()
        while True:
            try:
                samples, backlog = await self._link.send("HMGET", self._link.keys.run(self.run), "samples", "backlog")
                break
            except Outage:
                await self._link.reconnect()
        if samples is None:
            raise UnknownName(f"no run {self.run!r}; `gymq status` lists the runs")
        self._samples = int(samples)
        return int(backlog)

    async def start(self) -> None:
        """Connect and declare the consumer.

        Raises:
            UnknownName: there is no such run.
            ServerUnreachable: Redis cannot be reached.
        """
        await self.connect()
        self.missed = await self._link.insist("declare", self.run, self.consumer)
        if self.missed < 0:
            raise UnknownName(f"no run {self.run!r}; `gymq status` lists the runs")

    async def read(self, block: int = BLOCK) -> list[Rollout] | None:
        """The next finished rollouts; an empty list after a while without any; None when no more will come.

        Args:
            block: milliseconds to wait for more.
        """
        while True:
            try:
                over = await self._over()
                batch = await self._take(">", None if over else block)
                if over and not batch:
                    return None
                self._compare(batch)
                return await self._fresh(batch)
            except Outage:
                await self._link.reconnect()
                again = await self.unacknowledged()
                if again:
                    return again

    async def unacknowledged(self) -> list[Rollout]:
        """What was delivered to this consumer before and not acknowledged, unless this process has it already."""
        while True:
            try:
                found: list[Rollout] = []
                after = "0"
                while batch := await self._take(after, None):
                    found += batch
                    after = batch[-1].entry.decode()
                self._newest = max([self._newest, *(rollout.seq for rollout in found)])
                known = {entry for entries in self._held.values() for entry in entries}
                return await self._fresh([rollout for rollout in found if rollout.entry not in known])
            except Outage:
                await self._link.reconnect()

    def resume(self, seen: Seen, newest: int) -> None:
        """Go on where another process has stopped.

        Args:
            seen: what was delivered to it.
            newest: the highest commit number among that.
        """
        self.seen, self._newest = seen, newest

    def _compare(self, batch: list[Rollout]) -> None:
        """See whether Redis went back: new entries come with rising commit numbers, else some were given twice."""
        for rollout in batch:
            if rollout.seq <= self._newest:
                lost = self._newest - rollout.seq + 1
                self.rolled_back += lost
                print(
                    f"gymq: consumer {self.consumer!r} of run {self.run!r}: Redis lost the last {lost} rollouts that it had "
                    "confirmed; they end again, and what was delivered is not delivered twice",
                    file=sys.stderr,
                )
            self._newest = rollout.seq

    async def _fresh(self, batch: list[Rollout]) -> list[Rollout]:
        """What was not delivered before; the rest is acknowledged when its predecessor is."""
        fresh: list[Rollout] = []
        done: list[bytes] = []
        for rollout in batch:
            if self.seen.add(rollout.id):
                fresh.append(rollout)
                self._held[rollout.id] = [rollout.entry]
                continue
            self.repeated += 1
            if rollout.id in self._held:
                self._held[rollout.id].append(rollout.entry)
            else:
                done.append(rollout.entry)
        if done:
            await self._acknowledge(done)
        return fresh

    async def _take(self, after: str, block: int | None) -> list[Rollout]:
        wait = () if block is None else ("BLOCK", block)
        stream = self._link.keys.results(self.run)
        try:
            reply = await self._link.send(
                "XREADGROUP", "GROUP", self.consumer, READER, "COUNT", BATCH, *wait, "STREAMS", stream, after
            )
        except GymqError as error:
            if "NOGROUP" in str(error):
                raise UnknownName(f"run {self.run!r} has no consumer {self.consumer!r} any more: it was removed") from None
            raise
        entries = reply[0][1] if reply else ()
        written = [(entry, fields) for entry, fields in entries if fields is not None]
        forged = [entry for entry, fields in written if not self._ours(fields)]
        if forged:
            await self._drop(forged)
            if len(forged) == len(written):
                return await self._take(after, block)
        return [Rollout(f[1].decode(), f[7], f[3] == b"1", entry, int(f[5])) for entry, f in written if entry not in forged]

    def _ours(self, fields: list[bytes]) -> bool:
        """Whether an entry is a finished rollout of this run: whoever may write to Redis may write to its results, too."""
        if len(fields) != 8 or fields[::2] != FIELDS or not _number(fields[5]):
            return False
        rid, record = fields[1], fields[7]
        place = rid.removeprefix(self.run.encode() + b".").split(b".")
        shaped = rid.startswith(self.run.encode() + b".") and len(place) == 2 and all(_number(part) for part in place)
        return shaped and record.startswith(b'{"rollout_id":"%b",' % rid) and record.endswith(b"}") and b"\n" not in record

    async def _drop(self, entries: list[bytes]) -> None:
        for entry in entries:
            told = f"gymq: entry {entry.decode()} in the results of run {self.run!r} is no rollout of it; it is left out"
            print(told, file=sys.stderr)
            # Not as a rollout that was used: those are counted.
            await self._link.send("XACK", self._link.keys.results(self.run), self.consumer, entry)

    async def _over(self) -> bool:
        state, rows, samples, ended, live = await self._link.run("progress", self.run)
        if state is None:
            raise UnknownName(f"run {self.run!r} was removed")
        if state == b"cancelled":
            return live == 0
        return state == b"done" or (state == b"closed" and ended == rows * samples)

    async def acknowledge(self, rollouts: Iterable[Rollout]) -> bool:
        """Say that some rollouts have been used; returns whether the run is done."""
        entries: list[bytes] = []
        for rollout in rollouts:
            entries += self._held.pop(rollout.id, (rollout.entry,))
        return await self._acknowledge(entries)

    async def _acknowledge(self, entries: list[bytes]) -> bool:
        return await self._link.insist("ack", self.run, self.consumer, self._settings.ttl, *entries) == 1

    async def ack(self, *items: Rollout | Group) -> None:
        """Say that rollouts or groups have been used: they will not come again."""
        rollouts: list[Rollout] = []
        for item in items:
            rollouts += item.rollouts if isinstance(item, Group) else [item]
        await self.acknowledge(rollouts)

    async def __aiter__(self) -> AsyncIterator[Any]:
        await self.start()
        batch: list[Rollout] | None = await self.unacknowledged()
        while batch is not None:
            # What was read and not used yet outlives the iteration: a second one goes on where the first was left.
            self._waiting += batch
            while self._waiting:
                rollout = self._waiting.popleft()
                if self._unit == "rollout":
                    yield rollout
                elif (group := self._gather(rollout)) is not None:
                    yield group
            batch = await self.read()
        while self._open:
            yield self._group(next(iter(self._open)))
        await self.acknowledge([])
        await self.close()

    def _gather(self, rollout: Rollout) -> Group | None:
        self._open.setdefault(rollout.group, []).append(rollout)
        # The member that ended last is read last: the stream keeps the order of the commits.
        return self._group(rollout.group) if rollout.last else None

    def _group(self, name: str) -> Group:
        members = sorted(self._open.pop(name), key=lambda rollout: rollout.sample)
        return Group(name, members, complete=len(members) == self._samples)

    async def close(self) -> None:
        """Close the connection; what was not acknowledged comes back next time."""
        await self._link.close()


class SyncResults:
    """The same for code without a loop; iterate over it, and `ack` what was used."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._runner = asyncio.Runner()

    @property
    def missed(self) -> int:
        """Finished rollouts that were trimmed before this consumer was declared."""
        return self._results.missed

    def __iter__(self) -> Iterator[Any]:
        items = aiter(self._results)
        while True:
            try:
                yield self._runner.run(anext(items))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return

    def ack(self, *items: Rollout | Group) -> None:
        """Say that rollouts or groups have been used: they will not come again."""
        self._runner.run(self._results.ack(*items))

    def close(self) -> None:
        """Close the connection; what was not acknowledged comes back next time."""
        self._runner.run(self._results.close())
        self._runner.close()


def _number(text: bytes) -> bool:
    return text.isdigit() and len(text) <= MAX_DIGITS


def consume(
    run: str, consumer: str = "trainer", unit: Literal["rollout", "group"] = "rollout", settings: Settings | None = None
) -> SyncResults:
    """Stream a run's finished rollouts, or its groups as they become whole.

    Args:
        run: the run's name.
        consumer: who reads; each consumer sees everything.
        unit: `rollout` or `group`.
        settings: where Redis is; from the environment if not given.
    """
    return SyncResults(Results(run, consumer, unit, settings))
