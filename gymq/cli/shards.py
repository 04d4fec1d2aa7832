"""Connections of a command to all shards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from gymq.settings import Settings
    from gymq.store.sharded import Shards

T = TypeVar("T")


def with_shards(settings: Settings, work: Callable[[Shards], Awaitable[T]]) -> T:
    """Return the result of some work on connections to all shards, which are closed afterwards.

    Args:
        settings: where Redis is.
        work: the work.
    """
    from gymq.store.sharded import Shards

    async def connected() -> T:
        async with Shards(settings, "gymq-cli") as shards:
            return await work(shards)

    return asyncio.run(connected())
