"""Weights that change under way: which ones a model's replicas are to sample with, and how far they are.

What is wanted stands in Redis, on shard 0; replicas look, and take it (`gymq_workers/model/replica.py`). The other shards hold
copies for what works there; who finds one that differs writes it again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal

import msgspec

from gymq.errors import UNREADABLE, GymqError, UsageError
from gymq.link import Link, Outage
from gymq.settings import Settings
from gymq.shards import Shards, scan

Mode = Literal["keep", "wait", "abort"]

#: What becomes of calls in flight: they stand still and go on, they are finished first, or they are begun again.
MODES = ("keep", "wait", "abort")

#: The highest version: what Lua counts exactly.
MOST = 2**53

#: Failures of a model's replicas that are kept, the newest.
FAILURES = 100

#: Seconds between two looks of a publisher that waits.
PAUSE = 0.1


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


class Replica(msgspec.Struct):
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
        """For a person."""
        return f"{self.host} pid {self.pid}"


class Failure(msgspec.Struct):
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


class ModelWeights(msgspec.Struct):
    """A model's weights and who has them.

    Args:
        model: its SPEC.
        wanted: what was published last, or None.
        replicas: its workers alive.
        failed: those that could not load what is wanted, the newest first.
    """

    model: str
    wanted: Weights | None
    replicas: list[Replica]
    failed: list[Failure]

    @property
    def behind(self) -> list[Replica]:
        """The replicas that are to take what is wanted, and have not."""
        wanted = self.wanted.version if self.wanted is not None else 0
        return [one for one in self.replicas if one.version is not None and (one.version < wanted or one.loading is not None)]


class _Worker(msgspec.Struct):
    """A worker's entry in the registry, as far as it matters here."""

    host: str
    pid: int
    mailboxes: list[str]
    role: str = ""
    alone: bool = False
    version: int | None = None
    loading: int | None = None


async def read_weights(link: Link, model: str) -> Weights | None:
    """What a model is to sample with, as a shard knows it; None: nothing was published.

    Raises:
        Outage: the connection broke.
        GymqError: what stands there cannot be read.
    """
    data = await link.send("HGET", link.keys.weights(model), "weights")
    try:
        return None if data is None else msgspec.json.decode(data, type=Weights)
    except UNREADABLE as error:
        raise GymqError(f"weights: what Redis says of model {model} cannot be read: {error}; publish again") from None


async def read_version(link: Link, model: str) -> int:
    """The version that a model is to sample with, as a shard knows it; 0: nothing was published.

    Raises:
        Outage: the connection broke.
    """
    return int(await link.send("HGET", link.keys.weights(model), "version") or 0)


async def copy(link: Link, wanted: Weights) -> None:
    """Write what shard 0 says onto another shard, unless that knows it, or newer words of shard 0.

    Raises:
        Outage: the connection broke.
    """
    there = await read_weights(link, wanted.model)
    if there is None or there.published < wanted.published:
        data = msgspec.json.encode(wanted)
        await link.send("HSET", link.keys.weights(wanted.model), "version", wanted.version, "id", wanted.id, "weights", data)


async def publish(shards: Shards, model: str, version: int, path: str, *, mode: Mode = "keep", rolling: bool = True) -> Weights:
    """Say that a model is to sample with other weights; see `publish_weights`.

    Args:
        shards: connections.
        model, version, path, mode, rolling: as there.

    Raises:
        UsageError: an argument makes no sense, or the version is not above the one that is wanted.
    """
    wanted = _make(model, version, path, mode, rolling)
    done, *there = await shards.first.insist("publish", model, version, wanted.id, msgspec.json.encode(wanted))
    if not done:
        raise UsageError(
            f"weights: model {model} is at version {there[0]}, and versions only grow: {version} is refused; "
            f"publish a higher one, or begin again with `gymq weights forget --model {model}`"
        )
    await _elsewhere(shards, lambda link: copy(link, wanted))
    return wanted


def _make(model: str, version: int, path: str, mode: Mode, rolling: bool) -> Weights:
    if not isinstance(model, str) or not model:
        raise UsageError("weights: name the model, as `gymq worker model --model SPEC` does")
    if type(version) is not int or not 0 < version <= MOST:
        raise UsageError(f"weights: version is {version!r}; it is a whole number above 0")
    if not isinstance(path, str) or not path:
        raise UsageError(f"weights: path is {path!r}; name a folder that the model's workers can read")
    if mode not in MODES:
        raise UsageError(f"weights: mode is {mode!r}; it is keep, wait or abort")
    return Weights(model, version, os.path.abspath(path), mode, rolling, secrets.token_hex(8), time.time())


async def _elsewhere(shards: Shards, work: Callable[[Link], Awaitable[Any]]) -> None:
    async def one(link: Link) -> None:
        with suppress(Outage):  # the workers see to it when that shard is back
            await work(link)

    await asyncio.gather(*map(one, shards.links[1:]))


async def forget(shards: Shards, model: str) -> bool:
    """Forget what was published of a model: replicas keep what they have, those that start have none.

    Returns:
        Whether anything had been published.
    """
    there = await shards.first.send("DEL", shards.first.keys.weights(model))
    await shards.first.send("DEL", shards.first.keys.failed(model))
    await _elsewhere(shards, lambda link: link.send("DEL", link.keys.weights(model)))
    return bool(there)


async def taken(shards: Shards, wanted: Weights, limit: float) -> ModelWeights:
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
        (found,) = await survey(shards, wanted.model)
        newer = found.wanted is not None and found.wanted.version > wanted.version
        takers = [one for one in found.replicas if one.version is not None]
        if newer or ((takers or found.failed or found.replicas) and not found.behind) or time.monotonic() >= until:
            return found
        await asyncio.sleep(PAUSE)


async def survey(shards: Shards, model: str | None = None) -> list[ModelWeights]:
    """What models are to sample with, and who does.

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
        failed = [msgspec.json.decode(one, type=Failure) for one in await first.send("LRANGE", first.keys.failed(spec), 0, -1)]
        found.append(ModelWeights(spec, await read_weights(first, spec), replicas.get(spec, []), failed))
    return found


async def _replicas(shards: Shards) -> dict[str, list[Replica]]:
    """The model workers alive, by what they serve."""
    found: dict[tuple[str, int], tuple[str, Replica]] = {}
    for link in shards.links:
        flat = await link.send("HGETALL", link.keys.workers)
        entries = dict(zip(flat[::2], flat[1::2], strict=True))
        signs = await link.send("MGET", *[link.keys.alive(name.decode()) for name in entries]) if entries else []
        for data, sign in zip(entries.values(), signs, strict=True):
            try:
                told = msgspec.json.decode(data, type=_Worker)
            except UNREADABLE:
                continue  # it was declared dead, or is no worker
            boxes = [box.removeprefix("model:") for box in told.mailboxes if box.startswith("model:")]
            if sign is None or told.role != "model" or told.alone or not boxes:
                continue
            # A process has an entry on each shard; one may be a moment behind.
            _, known = found.get((told.host, told.pid), ("", None))
            new = Replica(told.host, told.pid, told.version, told.loading)
            if known is None or (known.version or 0) > (new.version or 0):
                found[told.host, told.pid] = (boxes[0], new)
    by_model: dict[str, list[Replica]] = {}
    for _, (spec, replica) in sorted(found.items()):
        by_model.setdefault(spec, []).append(replica)
    return by_model


def wake(settings: Settings) -> None:
    """Let the workers look now; they do anyway, once a second."""
    from kombu.exceptions import OperationalError

    from gymq import broker
    from gymq.celery import app

    told = broker.find(settings)
    ours: Any = app.connection_for_write(told.url, ssl=told.ssl or False, transport_options=told.options)
    with suppress(OperationalError), ours as connection:
        app.control.broadcast("look", connection=connection)


def publish_weights(
    model: str,
    version: int,
    path: str,
    *,
    mode: Mode = "keep",
    rolling: bool = True,
    wait: float = 0.0,
    settings: Settings | None = None,
) -> ModelWeights:
    """Let all replicas of a model sample with other weights; no conversation is lost by it.

    Args:
        model: its SPEC, as `gymq worker model --model SPEC` has it.
        version: the policy version, an integer above that of all before.
        path: a folder with the weights, the same for each worker; it stays as it is until the next version is taken.
        mode: what becomes of calls in flight: `keep`: they stand still and go on; `wait`: they are finished first;
            `abort`: they are begun again.
        rolling: True: one replica after the other; False: all at once.
        wait: seconds to wait at most until all replicas have taken them; 0: do not wait.
        settings: where Redis is; from the environment if not given.

    Returns:
        What is wanted, who has taken it, who could not.

    Raises:
        UsageError: an argument makes no sense, or the version is not above the one that is wanted.
        GymqError: `wait`, and some replica could not load them, or has not within the time.
    """
    wanted, found = publish_and_see(
        settings or Settings.from_environment(), model, version, path, mode=mode, rolling=rolling, wait=wait
    )
    if wait:
        check(found, wanted)
    return found


def publish_and_see(settings: Settings, model: str, version: int, path: str, **how: Any) -> tuple[Weights, ModelWeights]:
    """What `publish_weights` does, but for the judgement.

    Args:
        settings: where Redis is.
        model, version, path: as there.
        how: `mode`, `rolling` and `wait`.

    Returns:
        What was published, and what came of it.
    """

    async def connected(work: Callable[[Shards], Awaitable[Any]]) -> Any:
        shards = Shards(settings, "gymq-weights")
        try:
            await shards.connect()
            return await work(shards)
        finally:
            await shards.close()

    wait = how.pop("wait")
    wanted = asyncio.run(connected(lambda shards: publish(shards, model, version, path, **how)))
    wake(settings)
    return wanted, asyncio.run(connected(lambda shards: taken(shards, wanted, wait)))


def check(found: ModelWeights, wanted: Weights) -> None:
    """See that weights were taken.

    Args:
        found: what `taken` found.
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
