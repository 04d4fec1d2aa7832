"""The replicas of models: the weights that each has or loads, and the failures to load."""

from __future__ import annotations

import asyncio
import time

import msgspec

from gymq.errors import GymqError
from gymq.store.model_weights import LoadFailure, Weights, read_weights
from gymq.store.sharded import Shards, scan
from gymq.store.worker_registry import live_workers

#: Seconds between two looks of a publisher that waits.
POLL_INTERVAL = 0.1


class ReplicaStatus(msgspec.Struct):
    """A worker alive that serves a model.

    Args:
        host, pid: its process.
        version: of the weights that it samples with, 0 before it got any; None: its backend takes none.
        loading: the version that it loads at the moment, or None.
    """

    host: str
    pid: int
    version: int | None = None
    loading: int | None = None

    @property
    def name(self) -> str:
        """Host and process id, for a person."""
        return f"{self.host} pid {self.pid}"


class ModelWeights(msgspec.Struct):
    """A model's weights and its replicas.

    Args:
        model: its SPEC.
        wanted: what was published last, or None.
        replicas: its workers alive.
        failed: those that could not load what is wanted, the newest first.
    """

    model: str
    wanted: Weights | None
    replicas: list[ReplicaStatus]
    failed: list[LoadFailure]

    @property
    def behind(self) -> list[ReplicaStatus]:
        """The replicas that are to take what is wanted, and have not."""
        wanted = self.wanted.version if self.wanted is not None else 0
        return [r for r in self.replicas if r.version is not None and (r.version < wanted or r.loading is not None)]


async def wait_until_loaded(shards: Shards, wanted: Weights, limit: float) -> ModelWeights:
    """Wait until a model's replicas have taken weights, or could not.

    Args:
        shards: connections.
        wanted: what was published.
        limit: seconds to wait at most, for the first replica, too.

    Returns:
        Who has taken them, who could not; who is `behind` when the time was over.
    """
    until = time.monotonic() + limit
    while True:
        (found,) = await weights_status(shards, wanted.model)
        newer = found.wanted is not None and found.wanted.version > wanted.version
        takers = [one for one in found.replicas if one.version is not None]
        if newer or ((takers or found.failed or found.replicas) and not found.behind) or time.monotonic() >= until:
            return found
        await asyncio.sleep(POLL_INTERVAL)


async def weights_status(shards: Shards, model: str | None = None) -> list[ModelWeights]:
    """Return the wanted weights of models, and their replicas.

    Args:
        shards: connections.
        model: only this one; None: all of which weights were published, or whose workers take some.
    """
    replicas = await _replicas(shards)
    first = shards.first
    if model is not None:
        models = [model]
    else:
        prefix = first.keys.weights("")
        published = {key.removeprefix(prefix) for key in await scan(first, f"{prefix}*")}
        models = sorted(published | {spec for spec, some in replicas.items() if any(one.version is not None for one in some)})
    found: list[ModelWeights] = []
    for spec in models:
        failed = [
            msgspec.json.decode(one, type=LoadFailure)
            for one in await first.send("LRANGE", first.keys.load_failures(spec), 0, -1)
        ]
        found.append(ModelWeights(spec, await read_weights(first, spec), replicas.get(spec, []), failed))
    return found


async def _replicas(shards: Shards) -> dict[str, list[ReplicaStatus]]:
    """Return the live model workers by the SPEC that they serve."""
    found: dict[tuple[str, int], tuple[str, ReplicaStatus]] = {}
    for workers in await shards.each(live_workers):
        for entry in workers.values():
            specs = [box.removeprefix("model:") for box in entry.mailboxes if box.startswith("model:")]
            if entry.role != "model" or entry.quarantine or not specs:
                continue
            # A process has an entry on each shard; one may be a moment behind.
            _, known = found.get((entry.host, entry.pid), ("", None))
            if known is None or (known.version or 0) > (entry.version or 0):
                replica = ReplicaStatus(entry.host, entry.pid, entry.version, entry.loading)
                found[entry.host, entry.pid] = (specs[0], replica)
    by_model: dict[str, list[ReplicaStatus]] = {}
    for _, (spec, replica) in sorted(found.items()):
        by_model.setdefault(spec, []).append(replica)
    return by_model


def check_loaded(found: ModelWeights, wanted: Weights) -> None:
    """Check that all replicas have taken weights.

    Args:
        found: what `wait_until_loaded` found.
        wanted: what was published.

    Raises:
        GymqError: some replica could not load them, has not yet, or there is none.
    """
    where = f"weights: version {wanted.version} of {wanted.model}"
    if found.failed:
        first = found.failed[0]
        raise GymqError(f"{where}: {len(found.failed)} replicas could not load it, {first.name}: {first.error}")
    if found.behind:
        raise GymqError(f"{where}: {len(found.behind)} replicas have not taken it in time: {found.behind[0].name} and others")
    if not found.replicas:
        raise GymqError(f"{where}: no replica is alive; those that start load it before their first call")
    if all(one.version is None for one in found.replicas):
        raise GymqError(f"{where}: the backend of its replicas takes no weights")
