"""Weights that change under way: which ones a model is to sample with.

What is wanted stands in Redis, on shard 0; replicas look, and take it (`gymq_workers/model/replica.py`). The other shards hold
copies for what works there; who finds one that is older writes it again.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gymq.errors import UNREADABLE, GymqError
from gymq.store.connection import Connection

Mode = Literal["keep", "wait", "abort"]

#: What becomes of calls in flight: they stand still and go on, they are finished first, or they are begun again.
MODES = ("keep", "wait", "abort")

#: The highest version: what Lua counts exactly.
MAX_VERSION = 2**53

#: Failures of a model's replicas that are kept, the newest.
MAX_FAILURES = 100


class Weights(msgspec.Struct, frozen=True):
    """What a model is to sample with.

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
        """For a person."""
        return f"{self.host} pid {self.pid}"


async def read_weights(connection: Connection, model: str) -> Weights | None:
    """What a model is to sample with, as a shard knows it; None: nothing was published.

    Raises:
        Outage: the connection broke.
        GymqError: what stands there cannot be read.
    """
    data = await connection.send("HGET", connection.keys.weights(model), "weights")
    try:
        return None if data is None else msgspec.json.decode(data, type=Weights)
    except UNREADABLE as error:
        raise GymqError(f"weights: what Redis says of model {model} cannot be read: {error}; publish again") from None


async def read_version(connection: Connection, model: str) -> int:
    """The version that a model is to sample with, as a shard knows it; 0: nothing was published.

    Raises:
        Outage: the connection broke.
    """
    return int(await connection.send("HGET", connection.keys.weights(model), "version") or 0)


async def copy(connection: Connection, wanted: Weights) -> None:
    """Write what shard 0 says onto another shard, unless that knows it, or newer words of shard 0.

    Raises:
        Outage: the connection broke.
    """
    there = await read_weights(connection, wanted.model)
    if there is None or there.published < wanted.published:
        data = msgspec.json.encode(wanted)
        await connection.send(
            "HSET", connection.keys.weights(wanted.model), "version", wanted.version, "id", wanted.id, "weights", data
        )
