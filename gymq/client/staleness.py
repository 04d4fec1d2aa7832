"""The limit of staleness: policy versions between a rollout's oldest token and the run's model."""

from __future__ import annotations

from gymq.settings import Settings
from gymq.store.connection import Connection, Outage
from gymq.store.model_weights import read_version
from gymq.store.runs import load_config
from gymq.wire.rollout import Rollout


class StalenessLimit:
    """The staleness limit of one consumer.

    Args:
        settings: where Redis is; the versions stand on the first shard.
        run: the run's name.
        most: versions that the oldest token may be behind.
    """

    def __init__(self, settings: Settings, run: str, most: int) -> None:
        self._connection = Connection(settings.at(0), "gymq-staleness")
        self._run = run
        self._most = most
        self._model = ""

    async def exceeded(self, rollouts: list[Rollout]) -> bool:
        """Return whether one of some rollouts is too old at this moment; those without a version are not.

        Raises:
            UnknownName: the run was removed.
        """
        known = [rollout.versions[0] for rollout in rollouts if rollout.versions is not None]
        # Asked each time: what waits to be delivered grows old.
        return bool(known) and await self._current() - min(known) > self._most

    async def _current(self) -> int:
        while True:
            try:
                if not self._model:
                    await self._connection.reconnect()
                    self._model = (await load_config(self._connection, self._run)).model
                return await read_version(self._connection, self._model)
            except Outage:
                await self._connection.reconnect()

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()
        self._model = ""
