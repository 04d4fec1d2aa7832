"""The record of a `gymq run` on its server: continued where it fits the file of finished rollouts, else begun again."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from pathlib import Path

import msgspec

from gymq.client.place import Place
from gymq.client.rollout_set import RolloutSet
from gymq.errors import UnknownName, UsageError
from gymq.store import runs, scripts
from gymq.store.runs import RunConfig
from gymq.store.sharded import Shards
from gymq.wire.ids import RolloutId

#: Ids in one Redis command.
_BATCH = 1000


class _ShardRecord(msgspec.Struct):
    """The record on one shard, as far as it tells whether the run can be continued.

    Args:
        state: None: the shard has no such run.
        to: where the run's own sink writes; None: nowhere yet.
        stored: rollouts that must stand in the file: acknowledged by the sink, or kept from an earlier life.
        samples: rollouts of each task.
        failed: rollouts that failed or were cancelled.
    """

    state: str | None
    to: Place | None
    stored: int
    samples: int
    failed: int


class RunRecord:
    """The record of one run on all shards.

    Args:
        shards: connections.
        config: the run.
        consumer: the consumer that is the run's own sink.
        out: the file of finished rollouts.
        kept: the rollouts that it holds.
    """

    def __init__(self, shards: Shards, config: RunConfig, consumer: str, out: Path, kept: RolloutSet) -> None:
        self._shards = shards
        self._config = config
        self._consumer = consumer
        self._place = Place.here(out)
        self._kept = kept

    async def enter(self, *, shared: bool, again: bool) -> None:
        """Continue the run, or begin it again without what the file holds.

        Args:
            shared: other processes may work on the run: the server is not the run's own, which lies beside the file and moves
                with it.
            again: what failed is to be done again.

        Raises:
            UsageError: the run goes to another file, or it must begin again and another consumer has not read it all.
        """
        name = self._config.name
        records = [await self._read(shard) for shard in range(len(self._shards.connections))]
        if shared:
            self._check_place(records)
        if self._fits(records, again):
            await self._shards.create(self._config)
            await self._shards.reopen(name)
        else:
            others = await self._others()
            for connection in self._shards.connections:
                with suppress(UnknownName):
                    await runs.remove(connection, name)
            await self._shards.create(self._config)
            await self._skip()
            for consumer in others:
                await self._shards.declare(name, consumer)
        if not shared:
            # The sink claims the file, wherever it lies now.
            await self._shards.each(
                lambda connection: connection.send("HDEL", connection.keys.run(name), f"to:{self._consumer}")
            )

    async def _read(self, shard: int) -> _ShardRecord:
        connection = self._shards.connections[shard]
        fields = ("state", f"to:{self._consumer}", f"acked:{self._consumer}", "n:kept", "samples", "n:failed", "n:cancelled")
        state, to, *counts = await connection.send("HMGET", connection.keys.run(self._config.name), *fields)
        acked, kept, samples, failed, cancelled = (int(count or 0) for count in counts)
        return _ShardRecord(
            state and state.decode(), Place.parse(to.decode()) if to else None, acked + kept, samples, failed + cancelled
        )

    def _check_place(self, records: list[_ShardRecord]) -> None:
        """Check that the run does not go to another file: at another path, or on another host and no copy of this one."""
        name = self._config.name
        to = next((record.to for record in records if record.to is not None), self._place)
        if not {record.state for record in records} & {"open", "closed", "cancelled"}:
            return
        stored = sum(record.stored for record in records)
        if to.path != self._place.path or (to.host != self._place.host and stored > len(self._kept)):
            raise UsageError(f"run {name!r} on this server writes to {to}; use that --out, or `gymq rm {name}` first")

    def _fits(self, records: list[_ShardRecord], again: bool) -> bool:
        """Return whether the run can be continued.

        Args:
            records: those of the shards.
            again: what failed is to be done again.
        """
        states = {record.state for record in records}
        # One shard may be done before the others; a run that is done everywhere takes no rows, and nothing of it is unread.
        goes_on = states <= {"open", "closed", "done"} and states != {"done"}
        # Its cursor counts in samples.
        same = {record.samples for record in records} == {self._config.samples}
        # What failed may not be in the file yet.
        failed = again and any(record.failed for record in records)
        # A rollout is acknowledged after it stands in the file. If fewer stand there, lines were deleted: it begins again.
        return goes_on and same and not failed and sum(record.stored for record in records) <= len(self._kept)

    async def _others(self) -> list[str]:
        """Return the names of the other consumers; the record may go, as nothing is in it that they need.

        Raises:
            UsageError: one of them has not acknowledged all that has ended.
        """
        name = self._config.name
        lags = await self._shards.each(lambda connection: connection.run(scripts.consumer_lag(name)))
        others = sorted({consumer for lag in lags for consumer in lag} - {self._consumer})
        for consumer in others:
            if unread := sum(lag.get(consumer, 0) for lag in lags):
                raise UsageError(
                    f"run {name!r} begins again on this server, and its consumer {consumer!r} has not acknowledged {unread} "
                    f"rollouts of before; let it read them, or forget it with `gymq consumer drop {name} {consumer}`"
                )
        return others

    async def _skip(self) -> None:
        """Tell each shard which rollouts it need not do again."""
        for shard, connection in enumerate(self._shards.connections):
            ids = (rid for rid in self._kept if RolloutId.parse(rid).shard(len(self._shards.connections)) == shard)
            while batch := list(islice(ids, _BATCH)):
                await connection.send("SADD", connection.keys.skip(self._config.name), *batch)
