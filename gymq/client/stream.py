"""One shard's finished rollouts, as one consumer reads and acknowledges them."""

from __future__ import annotations

import asyncio
import logging

from gymq.client.place import Place
from gymq.client.rollout_set import RolloutSet
from gymq.client.shard_member import ShardMember
from gymq.errors import GymqError
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.connection import FULL_PAUSE, Connection, Outage, ServerFull
from gymq.store.scripts import AckOutcome, MemberProgress
from gymq.store.sharded import check
from gymq.wire.rollout import Rollout, rollout_of_entry

log = logging.getLogger(__name__)

#: Finished rollouts read at once.
READ_BATCH = 500


class ShardStream:
    """One shard's finished rollouts, as one member of a consumer reads and acknowledges them.

    Args:
        settings: where Redis is, and which shard is meant.
        run: the run's name.
        consumer: the consumer's name.
        member: the member's name.
        seen: the rollouts that were delivered, of all shards.

    Attributes:
        over: nothing more will come.
        done: the run is done on this shard.
        repeated: rollouts that came again.
        rolled_back: finished rollouts that the shard had lost; they end again, and are not delivered again.
    """

    def __init__(self, settings: Settings, run: str, consumer: str, member: str, seen: RolloutSet) -> None:
        self.over = False
        self.done = False
        self._run = run
        self._consumer = consumer
        self._ttl = settings.ttl
        self._connection = Connection(settings, f"gymq-consumer-{consumer}")
        self._member = ShardMember(self._connection, run, consumer, member)
        # Where reads of several shards are always under way, an acknowledgement must not wait for them.
        self._ack_connection = (
            self._connection if self._connection.shards == 1 else Connection(settings, f"gymq-consumer-{consumer}")
        )
        self.repeated = 0
        self.rolled_back = 0
        self._ended_again: list[str] = []
        self._seen = seen
        self._newest = 0
        self._newest_id = ""
        # The entries of each delivered and unacknowledged rollout, as they stand in Redis's present history: several after a
        # roll-back, or none, until the rollout has ended again.
        self._held: dict[str, list[bytes]] = {}
        # The connection broke: an entry's id may be another rollout's by now, if Redis was rolled back.
        self._unsure = False
        self._recalled: list[Rollout] = []

    async def connect(self, place: Place | None = None) -> tuple[int, int]:
        """Connect, and see that the run exists.

        Args:
            place: where a file sink writes.

        Returns:
            Its samples, and this shard's part of its backlog.

        Raises:
            UnknownName: there is no such run.
            ServerUnreachable: the shard cannot be reached.
            UsageError: the server is another shard than here, or the consumer writes elsewhere.
        """
        for connection in {self._connection, self._ack_connection}:
            await connection.connect()
        while True:
            try:
                await check(self._connection)
                await self._member.find(place)
                samples, backlog = await self._connection.send(
                    "HMGET", self._connection.keys.run(self._run), "samples", "backlog"
                )
                return int(samples), int(backlog)
            except Outage:
                await self._connection.reconnect()

    async def declare(self) -> int:
        """Declare the consumer; returns how many finished rollouts it will not see.

        Raises:
            UnknownName: there is no such run.
        """
        return await self._member.declare()

    async def join(self, place: Place | None = None) -> Place | None:
        """Become the member, in a new epoch: the process that was it before neither reads on nor acknowledges.

        Args:
            place: where a file sink writes; what was delivered to it before stands there.

        Returns:
            Where the consumer wrote before, if it is a file sink.

        Raises:
            OtherFile: another host's file holds what this one does not: nothing has changed.
            UsageError: the consumer writes to another path.
        """
        held = -1 if place is None else self._seen.count(self._connection.shard, self._connection.shards)
        joined = await self._member.join(place, held, self._newest_id)
        if joined.kept:
            self._newest = 0  # commit numbers begin anew with the run's record
        return Place.parse(joined.place) if joined.place else None

    async def read(self, block: int) -> list[Rollout] | None:
        """Return the next finished rollouts; an empty list after a while without any; None when no more will come.

        Args:
            block: milliseconds to wait for more.

        Raises:
            MemberReplaced: another process is the member now.
            UnknownName: the run or the consumer was removed.
        """
        while True:
            try:
                progress = await self._member.progress()
                # What a read of the epoch before took, or an answer that did not arrive, is pending and in no process's hands.
                strays = progress.pending > sum(map(len, self._held.values()))
                if (self._recalled or self._unsure or strays) and (again := await self._recall(self._connection)):
                    return again
                over = _over(progress)
                batch = await self._take(">", None if over else block)
                self.over = over and not batch
                if self.over:
                    return None
                self._compare(batch)
                return await self._fresh(batch)
            except Outage:
                self._unsure = True
                await self._connection.reconnect()

    async def unacknowledged(self) -> list[Rollout]:
        """Return the rollouts that were delivered before and not acknowledged, unless this process has them already."""
        while True:
            try:
                return await self._recall(self._connection)
            except Outage:
                self._unsure = True
                await self._connection.reconnect()

    async def _recall(self, connection: Connection) -> list[Rollout]:
        """Read what is pending, and forget the entries that are not, or are another rollout's now.

        Args:
            connection: which one to use.

        Returns:
            The rollouts among it that this process does not have.
        """
        pending: dict[bytes, Rollout] = {}
        after = "0"
        while batch := await self._take(after, None, connection):
            pending |= {rollout.entry: rollout for rollout in batch}
            after = batch[-1].entry.decode()
        self._unsure = False
        for rid, entries in self._held.items():
            entries[:] = [entry for entry in entries if entry in pending and pending[entry].id == rid]
        known = {entry for entries in self._held.values() for entry in entries}
        self._newest = max([self._newest, *(rollout.seq for rollout in pending.values())])
        again, self._recalled = self._recalled, []
        return again + await self._fresh([rollout for entry, rollout in pending.items() if entry not in known])

    @property
    def held(self) -> int:
        """Rollouts that were delivered and not acknowledged."""
        return len(self._held)

    def take_ended_again(self) -> list[str]:
        """Return the groups whose last member came again since this was last asked: they get no more members."""
        groups, self._ended_again = self._ended_again, []
        return groups

    def resume(self, seen: RolloutSet, newest: int, rollout: str) -> None:
        """Resume where another process has stopped.

        Args:
            seen: what was delivered to it.
            newest: the highest commit number among that.
            rollout: the rollout that has it.
        """
        self._seen, self._newest, self._newest_id = seen, newest, rollout

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
                if rollout.entry not in self._held[rollout.id]:
                    self._held[rollout.id].append(rollout.entry)
            else:
                done.append(rollout.entry)
        if done:
            await self._acknowledge([], done)
        return fresh

    async def _take(self, after: str, block: int | None, connection: Connection | None = None) -> list[Rollout]:
        connection = connection or self._connection
        member = self._member.address.member
        wait = () if block is None else ("BLOCK", block)
        stream = connection.keys.results(self._run)
        while True:
            try:
                reply = await connection.send(
                    "XREADGROUP", "GROUP", self._consumer, member, "COUNT", READ_BATCH, *wait, "STREAMS", stream, after
                )
            except GymqError as error:
                if "NOGROUP" in str(error):
                    raise self._member.gone() from None
                raise
            entries = reply[0][1] if reply else ()
            ours: list[Rollout] = []
            forged: list[bytes] = []
            for entry, fields in entries:
                place = rollout_of_entry(fields, self._run) if fields is not None else None
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

    async def acknowledge(self, rollouts: list[Rollout]) -> None:
        """Acknowledge rollouts; those that Redis has lost are acknowledged when they have ended again.

        Raises:
            MemberReplaced: another process is the member now; nothing was acknowledged.
        """
        if await self._acknowledge([rollout.id for rollout in rollouts], []):
            for rollout in rollouts:
                self._held.pop(rollout.id, None)

    async def _acknowledge(self, rollouts: list[str], passed: list[bytes]) -> bool:
        """Acknowledge entries.

        Args:
            rollouts: rollouts that are held, all their entries.
            passed: further entries, just read: those of rollouts that came again.

        Returns:
            Whether the consumer is declared.
        """
        while True:
            address = self._member.address
            entries = [entry for rid in rollouts for entry in self._held.get(rid, ())] + passed
            try:
                outcome = await self._ack_connection.run(scripts.ack(address, self._ttl, entries))
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)
                continue
            except Outage:
                # Redis may have been rolled back: an id may be another rollout's when this is sent again.
                passed = []
                await self._sure()
                continue
            if outcome is AckOutcome.EPOCH_LOST:
                await self._member.join_again(address)
            elif outcome is AckOutcome.REPLACED:
                if address is self._member.address:
                    raise self._member.replaced()
            else:
                self.done = outcome is AckOutcome.RUN_DONE
                return outcome is not AckOutcome.UNKNOWN_CONSUMER

    async def _sure(self) -> None:
        """Connect again, and see which entries are still those of the rollouts that are held."""
        while True:
            await self._ack_connection.reconnect()
            try:
                self._recalled += await self._recall(self._ack_connection)
                return
            except Outage:
                continue

    async def close(self) -> None:
        """Close the connections."""
        for connection in {self._connection, self._ack_connection}:
            await connection.close()


def _over(progress: MemberProgress) -> bool:
    """Return whether no more rollouts of a run will end."""
    if progress.state == "cancelled":
        return progress.live == 0
    return progress.state == "done" or (progress.state == "closed" and progress.ended == progress.rows * progress.samples)
