"""One shard's finished rollouts, as one consumer reads and acknowledges them."""

from __future__ import annotations

import logging

from gymq.client.rollout_set import RolloutSet
from gymq.errors import GymqError, UnknownName
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.connection import Connection, Outage
from gymq.store.scripts import AckOutcome
from gymq.store.sharded import check
from gymq.wire.rollout import Rollout, rollout_of_entry

log = logging.getLogger(__name__)

#: Finished rollouts read at once.
READ_BATCH = 500

#: The name of the one reader within a consumer.
READER = "reader"


class ShardStream:
    """One consumer's stream of one shard's finished rollouts.

    Args:
        settings: where Redis is, and which shard is meant.
        run: the run's name.
        consumer: the consumer's name.
        seen: the rollouts that were delivered, of all shards.

    Attributes:
        over: nothing more will come.
        done: the run is done on this shard.
        repeated: rollouts that came again.
        rolled_back: finished rollouts that the shard had lost; they end again, and are not delivered again.
    """

    def __init__(self, settings: Settings, run: str, consumer: str, seen: RolloutSet) -> None:
        self.over = False
        self.done = False
        self._run = run
        self._consumer = consumer
        self._ttl = settings.ttl
        self._connection = Connection(settings, f"gymq-consumer-{consumer}")
        # Where reads of several shards are always under way, an acknowledgement must not wait for them.
        self._ack_connection = (
            self._connection if self._connection.shards == 1 else Connection(settings, f"gymq-consumer-{consumer}")
        )
        self.repeated = 0
        self.rolled_back = 0
        self._ended_again: list[str] = []
        self._seen = seen
        self._newest = 0
        # The entries of each delivered and unacknowledged rollout: more than one after a roll-back.
        self._held: dict[str, list[bytes]] = {}

    async def connect(self) -> tuple[int, int]:
        """Connect, and see that the run exists.

        Returns:
            Its samples, and this shard's part of its backlog.

        Raises:
            UnknownName: there is no such run.
            ServerUnreachable: the shard cannot be reached.
            UsageError: the server is another shard than here.
        """
        for connection in {self._connection, self._ack_connection}:
            await connection.connect()
        while True:
            try:
                await check(self._connection)
                samples, backlog = await self._connection.send(
                    "HMGET", self._connection.keys.run(self._run), "samples", "backlog"
                )
                break
            except Outage:
                await self._connection.reconnect()
        if samples is None:
            raise UnknownName(f"no run {self._run!r}; `gymq status` lists the runs")
        return int(samples), int(backlog)

    async def declare(self) -> int:
        """Declare the consumer; returns how many finished rollouts it will not see.

        Raises:
            UnknownName: there is no such run.
        """
        missed = await self._connection.insist(scripts.declare_consumer(self._run, self._consumer))
        if missed is None:
            raise UnknownName(f"no run {self._run!r}; `gymq status` lists the runs")
        return missed

    async def read(self, block: int) -> list[Rollout] | None:
        """Return the next finished rollouts; an empty list after a while without any; None when no more will come.

        Args:
            block: milliseconds to wait for more.
        """
        while True:
            try:
                over = await self._over()
                batch = await self._take(">", None if over else block)
                self.over = over and not batch
                if self.over:
                    return None
                self._compare(batch)
                return await self._fresh(batch)
            except Outage:
                await self._connection.reconnect()
                again = await self.unacknowledged()
                if again:
                    return again

    async def unacknowledged(self) -> list[Rollout]:
        """Return the rollouts that were delivered before and not acknowledged, unless this process has them already."""
        while True:
            try:
                pending: list[Rollout] = []
                after = "0"
                while batch := await self._take(after, None):
                    pending += batch
                    after = batch[-1].entry.decode()
                self._newest = max([self._newest, *(rollout.seq for rollout in pending)])
                known = {entry for entries in self._held.values() for entry in entries}
                return await self._fresh([rollout for rollout in pending if rollout.entry not in known])
            except Outage:
                await self._connection.reconnect()

    @property
    def held(self) -> int:
        """Rollouts that were delivered and not acknowledged."""
        return len(self._held)

    def take_ended_again(self) -> list[str]:
        """Return the groups whose last member came again since this was last asked: they get no more members."""
        groups, self._ended_again = self._ended_again, []
        return groups

    def resume(self, seen: RolloutSet, newest: int) -> None:
        """Resume where another process has stopped.

        Args:
            seen: what was delivered to it.
            newest: the highest commit number among that.
        """
        self._seen, self._newest = seen, newest

    def _compare(self, batch: list[Rollout]) -> None:
        """Detect a roll-back of Redis: the commit numbers of new entries rise, unless some were given twice."""
        for rollout in batch:
            if rollout.seq <= self._newest:
                lost = self._newest - rollout.seq + 1
                self.rolled_back += lost
                log.warning(
                    "consumer %r of run %r: Redis lost the last %d rollouts that it had confirmed; they end again, and what "
                    "was delivered is not delivered twice",
                    self._consumer,
                    self._run,
                    lost,
                )
            self._newest = rollout.seq

    async def _fresh(self, batch: list[Rollout]) -> list[Rollout]:
        """Return the rollouts that are new; a repeated one is acknowledged when its predecessor is."""
        fresh: list[Rollout] = []
        done: list[bytes] = []
        for rollout in batch:
            if self._seen.add(rollout.id):
                fresh.append(rollout)
                self._held[rollout.id] = [rollout.entry]
                continue
            self.repeated += 1
            if rollout.last:
                self._ended_again.append(rollout.group)
            if rollout.id in self._held:
                self._held[rollout.id].append(rollout.entry)
            else:
                done.append(rollout.entry)
        if done:
            await self._acknowledge(done)
        return fresh

    async def _take(self, after: str, block: int | None) -> list[Rollout]:
        wait = () if block is None else ("BLOCK", block)
        stream = self._connection.keys.results(self._run)
        while True:
            try:
                reply = await self._connection.send(
                    "XREADGROUP", "GROUP", self._consumer, READER, "COUNT", READ_BATCH, *wait, "STREAMS", stream, after
                )
            except GymqError as error:
                if "NOGROUP" in str(error):
                    raise UnknownName(
                        f"run {self._run!r} has no consumer {self._consumer!r} any more: it was removed"
                    ) from None
                raise
            entries = reply[0][1] if reply else ()
            ours: list[Rollout] = []
            forged: list[bytes] = []
            for entry, fields in entries:
                if fields is None:
                    continue
                place = rollout_of_entry(fields, self._run)
                if place is not None and place.shard(self._connection.shards) == self._connection.shard:
                    ours.append(Rollout(fields[1].decode(), fields[7], fields[3] == b"1", entry, int(fields[5])))
                else:
                    forged.append(entry)
            if forged:
                await self._drop(stream, forged)
            if ours or not forged:
                return ours

    async def _drop(self, stream: str, entries: list[bytes]) -> None:
        for entry in entries:
            said = "entry %s in the results of run %r is no rollout of it; it is left out"
            log.warning(said, entry.decode(), self._run)
        # Not as rollouts that were used: those are counted.
        await self._connection.send("XACK", stream, self._consumer, *entries)

    async def _over(self) -> bool:
        progress = await self._connection.run(scripts.run_progress(self._run))
        if progress.state is None:
            raise UnknownName(f"run {self._run!r} was removed")
        if progress.state == "cancelled":
            return progress.live == 0
        return progress.state == "done" or (progress.state == "closed" and progress.ended == progress.rows * progress.samples)

    async def acknowledge(self, rollouts: list[Rollout]) -> None:
        """Acknowledge rollouts."""
        entries: list[bytes] = []
        for rollout in rollouts:
            entries += self._held.pop(rollout.id, (rollout.entry,))
        await self._acknowledge(entries)

    async def _acknowledge(self, entries: list[bytes]) -> None:
        outcome = await self._ack_connection.insist(scripts.ack(self._run, self._consumer, self._ttl, entries))
        self.done = outcome is AckOutcome.RUN_DONE

    async def close(self) -> None:
        """Close the connections."""
        for connection in {self._connection, self._ack_connection}:
            await connection.close()
