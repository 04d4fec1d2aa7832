"""Weights that change during a run: the wanted version of each model.

The wanted weights stand in Redis, on shard 0; replicas poll and load them (`gymq_workers/model/weight_updater.py`). The other
shards hold copies for the workers there; a replica that finds an older copy writes it again.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gymq.errors import UNREADABLE, GymqError
from gymq.store.connection import Connection

Mode = Literal["keep", "wait", "abort"]

#: Treatment of calls in flight: `keep` pauses and continues them, `wait` finishes them first, `abort` begins them again.
MODES = ("keep", "wait", "abort")

#: Highest version: up to it Lua's numbers are exact.
MAX_VERSION = 2**53

#: Failures of a model's replicas that are kept, the newest.
MAX_FAILURES = 100


class Weights(msgspec.Struct, frozen=True):
    """Weights that a model is to sample with.

    Args:
        model: its SPEC.
        version: the policy version, an integer above that of all before.
        path: where the weights lie, for each of the workers.
        mode: `keep`, `wait` or `abort`.
        rolling: True: one replica after the other.
        id: of this publication.
        published: seconds since the epoch.
    """

    model: str
    version: int
    path: str
    mode: Mode
    rolling: bool
    id: str
    published: float


class LoadFailure(msgspec.Struct):
    """A replica that could not load weights, and left.

    Args:
        host, pid: its process.
        version: of the weights.
        error: one line.
        at: seconds since the epoch.
    """

    host: str
    pid: int
    version: int
    error: str
    at: float

    @property
    def name(self) -> str:
        """The replica's name in messages."""
        return f"{self.host} pid {self.pid}"


async def read_weights(connection: Connection, model: str) -> Weights | None:
    """Return the weights that a model is to sample with, as a shard knows them; None: none were published.

    Args:
        connection: a connection to the shard.
        model: the model's SPEC.

    Raises:
        Outage: the connection broke.
        GymqError: the stored description cannot be read.
    """
    data = await connection.send("HGET", connection.keys.weights(model), "weights")
    try:
        return None if data is None else msgspec.json.decode(data, type=Weights)
    except UNREADABLE as error:
        raise GymqError(f"weights: those of model {model} in Redis cannot be read: {error}; publish again") from None


async def read_version(connection: Connection, model: str) -> int:
    """Return the version that a model is to sample with, as a shard knows it; 0: none was published.

    Args:
        connection: a connection to the shard.
        model: the model's SPEC.

    Raises:
        Outage: the connection broke.
    """
    return int(await connection.send("HGET", connection.keys.weights(model), "version") or 0)


async def copy(connection: Connection, wanted: Weights) -> None:
    """Copy the wanted weights from shard 0 to another shard, unless it has them or newer ones.

    Args:
        connection: a connection to the other shard.
        wanted: the weights on shard 0.

    Raises:
        Outage: the connection broke.
    """
    there = await read_weights(connection, wanted.model)
    if there is None or there.published < wanted.published:
        data = msgspec.json.encode(wanted)
        await connection.send(
            "HSET", connection.keys.weights(wanted.model), "version", wanted.version, "id", wanted.id, "weights", data
        )
