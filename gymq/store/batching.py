"""Batching: items are gathered while the previous batch is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Gathers items while the previous batch is on its way: one round trip for many, without waiting for more.

    Args:
        flush: sends a batch and returns one result for each item.
        ended: called with each task that has sent batches, when it has ended, well or not.
        most: items of one batch, so that one script never holds the server for long.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        ended: Callable[[asyncio.Task[None]], object],
        most: int = 128,
    ) -> None:
        self._flush = flush
        self._ended = ended
        self._most = most
        self._waiting: list[tuple[Item, asyncio.Future[Result] | None]] = []
        self._task: asyncio.Task[None] | None = None

    def put(self, item: Item) -> None:
        """Send an item with the next batch."""
        self._waiting.append((item, None))
        self._start()

    def ask(self, item: Item) -> asyncio.Future[Result]:
        """Send an item with the next batch; the future gets its result."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._start()
        return future

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())
            self._task.add_done_callback(self._ended)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                results = await self._flush([item for item, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    if future is not None and not future.done():
                        future.set_result(result)
        finally:
            self._task = None
