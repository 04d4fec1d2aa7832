"""Batching: items are gathered while the previous batch is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Bytes of what one script takes or returns, but for a single item that is larger: some ten milliseconds of the server's
#: time. A server refuses more than 512 MiB, and breaks the connection at a gigabyte.
BATCH_BYTES = 16 * 2**20


def batches(
    items: Iterable[Item], most: int, weigh: Callable[[Item], int], most_bytes: int = BATCH_BYTES
) -> Iterator[list[Item]]:
    """Cut items into batches, in their order.

    Args:
        items: the items.
        most: items of one batch.
        weigh: returns about how many bytes an item takes.
        most_bytes: bytes of one batch, but for a single item that is larger.
    """
    batch: list[Item] = []
    left = most_bytes
    for item in items:
        weight = weigh(item)
        if batch and weight > left:
            yield batch
            batch, left = [], most_bytes
        batch.append(item)
        left -= weight
        if len(batch) == most:  # at once: the next item may be long in coming
            yield batch
            batch, left = [], most_bytes
    if batch:
        yield batch


class Batcher(Generic[Item, Result]):
    """Gathers items while the previous batch is on its way: one round trip for many, without waiting for more.

    Args:
        flush: sends a batch and returns one result for each item.
        ended: called with each task that has sent batches, when it has ended, well or not.
        weigh: returns about how many bytes of an item are sent.
        most: items of one batch, so that one script never holds the server for long.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        ended: Callable[[asyncio.Task[None]], object],
        weigh: Callable[[Item], int] = lambda item: 0,
        most: int = 128,
    ) -> None:
        self._flush = flush
        self._ended = ended
        self._weigh = weigh
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
                batch = next(batches(self._waiting, self._most, lambda waiting: self._weigh(waiting[0])))
                del self._waiting[: len(batch)]
                results = await self._flush([item for item, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    if future is not None and not future.done():
                        future.set_result(result)
        finally:
            self._task = None
