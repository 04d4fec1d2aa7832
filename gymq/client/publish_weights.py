"""Publishing the weights that a model samples with, and watching the replicas take them."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec

from gymq.aio import run_blocking
from gymq.client.replica_status import ModelWeights, check_loaded, wait_until_loaded
from gymq.errors import UsageError
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.connection import Connection, Outage
from gymq.store.model_weights import MAX_VERSION, MODES, Mode, Weights, copy
from gymq.store.sharded import Shards


async def publish(shards: Shards, model: str, version: int, path: str, *, mode: Mode = "keep", rolling: bool = True) -> Weights:
    """Publish a model's weights; see `publish_weights`.

    Args:
        shards: connections.
        model, version, path, mode, rolling: as there.

    Raises:
        UsageError: an argument makes no sense, or the version is not above the one that is wanted.
    """
    wanted = _make(model, version, path, mode, rolling)
    newer = await shards.first.insist(scripts.publish_weights(model, version, wanted.id, msgspec.json.encode(wanted)))
    if newer is not None:
        raise UsageError(
            f"weights: model {model} is at version {newer}, and versions only grow: {version} is refused; "
            f"publish a higher one, or begin again with `gymq weights forget --model {model}`"
        )
    await _elsewhere(shards, lambda connection: copy(connection, wanted))
    return wanted


def _make(model: str, version: int, path: str, mode: Mode, rolling: bool) -> Weights:
    if not isinstance(model, str) or not model:
        raise UsageError("weights: name the model, as `gymq worker model --model SPEC` does")
    if type(version) is not int or not 0 < version <= MAX_VERSION:
        raise UsageError(f"weights: version is {version!r}; it is a whole number above 0")
    if not isinstance(path, str) or not path:
        raise UsageError(f"weights: path is {path!r}; name a folder that the model's workers can read")
    if mode not in MODES:
        raise UsageError(f"weights: mode is {mode!r}; it is keep, wait or abort")
    return Weights(model, version, os.path.abspath(path), mode, rolling, secrets.token_hex(8), time.time())


async def _elsewhere(shards: Shards, work: Callable[[Connection], Awaitable[Any]]) -> None:
    async def one(connection: Connection) -> None:
        with suppress(Outage):  # the workers see to it when that shard is back
            await work(connection)

    await asyncio.gather(*map(one, shards.connections[1:]))


async def forget(shards: Shards, model: str) -> bool:
    """Forget a model's published weights: replicas keep theirs, and new ones get none.

    Args:
        shards: all shards.
        model: the model's SPEC.

    Returns:
        True if some had been published.
    """
    there = await shards.first.send("DEL", shards.first.keys.weights(model))
    await shards.first.send("DEL", shards.first.keys.load_failures(model))
    await _elsewhere(shards, lambda connection: connection.send("DEL", connection.keys.weights(model)))
    return bool(there)


def wake(settings: Settings) -> None:
    """Let the workers look now; they do anyway, once a second."""
    from kombu.exceptions import OperationalError

    from gymq.celery import app, broker

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
        The wanted weights, the replicas that have them, and those that could not load them.

    Raises:
        UsageError: an argument makes no sense, or the version is not above the one that is wanted.
        GymqError: `wait`, and some replica could not load them, or has not within the time.
    """
    return run_blocking(publish_weights_async(model, version, path, mode=mode, rolling=rolling, wait=wait, settings=settings))


async def publish_weights_async(
    model: str,
    version: int,
    path: str,
    *,
    mode: Mode = "keep",
    rolling: bool = True,
    wait: float = 0.0,
    settings: Settings | None = None,
) -> ModelWeights:
    """Do as `publish_weights`, while the caller's loop goes on.

    Args:
        model, version, path, mode, rolling, wait, settings: as of `publish_weights`.

    Raises:
        UsageError, GymqError: as `publish_weights`.
    """
    used = settings or Settings.from_environment()
    wanted, found = await publish_and_see(used, model, version, path, mode=mode, rolling=rolling, wait=wait)
    if wait:
        check_loaded(found, wanted)
    return found


async def publish_and_see(settings: Settings, model: str, version: int, path: str, **how: Any) -> tuple[Weights, ModelWeights]:
    """Publish weights and see who takes them; see `publish_weights`.

    Args:
        settings: where Redis is.
        model, version, path: as there.
        how: `mode`, `rolling` and `wait`.

    Returns:
        The weights that were published, and the replicas' state.
    """

    async def connected(work: Callable[[Shards], Awaitable[Any]]) -> Any:
        async with Shards(settings, "gymq-weights") as shards:
            return await work(shards)

    wait = how.pop("wait")
    wanted = await connected(lambda shards: publish(shards, model, version, path, **how))
    await asyncio.to_thread(wake, settings)
    return wanted, await connected(lambda shards: wait_until_loaded(shards, wanted, wait))
