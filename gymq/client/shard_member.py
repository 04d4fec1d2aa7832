"""A process as a member of a consumer, on one shard."""

from __future__ import annotations

import asyncio

from gymq.client.place import Place
from gymq.errors import MemberReplaced, OtherFile, UnknownName, UsageError
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.runs import load_config
from gymq.store.scripts import JoinOutcome, MemberProgress, Standing
from gymq.wire.consumer_member import ConsumerMember, Epoch


class ShardMember:
    """A process as a member of a consumer.

    Args:
        connection: to the shard.
        run: the run's name.
        consumer: the consumer's name.
        member: the member's name.

    Attributes:
        address: what scripts know it by; before it has joined, an epoch that no process has.
    """

    def __init__(self, connection: Connection, run: str, consumer: str, member: str) -> None:
        self.address = ConsumerMember(run, consumer, member, Epoch(0, ""))
        self._connection = connection
        self._incarnation = ""
        self._joining = asyncio.Lock()

    async def find(self, place: Place | None) -> None:
        """Find the run, which stays the same one from now on.

        Args:
            place: where a file sink writes.

        Raises:
            UnknownName: there is no such run.
            UsageError: the consumer writes to another path.
            Outage: the shard went away.
        """
        run, consumer, *_ = self.address
        self._incarnation = (await load_config(self._connection, run)).incarnation
        to = await self._connection.send("HGET", self._connection.keys.run(run), f"to:{consumer}")
        if place is not None and to and Place.parse(to.decode()).path != place.path:
            raise self._elsewhere(to.decode())

    async def declare(self) -> int:
        """Declare the consumer; returns how many finished rollouts it will not see.

        Raises:
            UnknownName: there is no such run.
        """
        run, consumer, *_ = self.address
        missed = await self._connection.insist(scripts.declare_consumer(run, consumer))
        if missed is None:
            raise UnknownName(f"no run {run!r}; `gymq status` lists the runs")
        return missed

    async def join(self, place: Place | None, held: int, newest: str) -> JoinOutcome:
        """Become the member, in a new epoch: the process that was it before neither reads on nor acknowledges.

        Args:
            place: where a file sink writes.
            held: rollouts that stand there, of this shard.
            newest: the one of them with the highest commit number.

        Raises:
            OtherFile: another host's file holds what this one does not: nothing has changed.
            UsageError: the consumer writes to another path.
        """
        async with self._joining:
            return await self._join(place, held, newest)

    async def _join(self, place: Place | None, held: int, newest: str) -> JoinOutcome:
        epoch = Epoch.after(self.address.epoch)
        address = self.address._replace(epoch=epoch)
        joined = await self._connection.insist(scripts.join_consumer(address, str(place or ""), held, newest))
        if joined is None:
            raise self.gone()
        if joined.number is None:
            if place is None or Place.parse(joined.place).path != place.path:
                raise self._elsewhere(joined.place)
            raise OtherFile(
                f"consumer {address.consumer!r} of run {address.run!r} writes to {joined.place}, and {place} holds {held} of "
                f"the {joined.acked} rollouts that it has acknowledged: is another file; choose another --consumer, or copy "
                "that file here"
            )
        self.address = address._replace(epoch=epoch._replace(number=joined.number))
        return joined

    async def join_again(self, lost: ConsumerMember) -> None:
        """Become the member again: Redis has lost the epoch.

        Args:
            lost: the address that it had; if another read or acknowledgement has joined since, nothing happens.

        Raises:
            UnknownName: the run is another one of the same name.
        """
        async with self._joining:
            if self.address is not lost:
                return
            if (await load_config(self._connection, lost.run)).incarnation != self._incarnation:
                raise UnknownName(f"run {lost.run!r} was removed, and another one has its name")
            await self.declare()
            await self._join(None, -1, "")

    async def progress(self) -> MemberProgress:
        """Return how far the run is; the process is the member.

        Raises:
            MemberReplaced, UnknownName: it is not, or the run or the consumer was removed.
            Outage: the shard went away.
        """
        while True:
            address = self.address
            progress = await self._connection.run(scripts.member_progress(address))
            if progress.state is None:
                raise UnknownName(f"run {address.run!r} was removed")
            if progress.standing is Standing.MEMBER:
                return progress
            if progress.standing is Standing.UNKNOWN_CONSUMER:
                raise self.gone()
            if progress.standing is Standing.EPOCH_LOST:
                await self.join_again(address)
            elif address is self.address:
                raise self.replaced()

    def gone(self) -> UnknownName:
        """Return the error of a consumer that was dropped."""
        return UnknownName(f"run {self.address.run!r} has no consumer {self.address.consumer!r} any more: it was removed")

    def replaced(self) -> MemberReplaced:
        """Return the error of a process that is the member no more."""
        run, consumer, member, _ = self.address
        return MemberReplaced(
            f"consumer {consumer!r} of run {run!r}: another process has become its member {member!r}, and goes on from what "
            "was acknowledged; give each process a member of its own"
        )

    def _elsewhere(self, place: str) -> UsageError:
        run, consumer, *_ = self.address
        return UsageError(
            f"consumer {consumer!r} of run {run!r} writes to {place}; choose another --consumer, or move it with "
            f"`gymq consumer drop {run} {consumer}`"
        )
