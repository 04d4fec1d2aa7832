"""Many items in one script: gathered while the previous batch is on its way, and encoded for Lua."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack

_packer = msgpack.Packer(use_bin_type=False)


def pack(value: Any) -> bytes:
    """Encode a script's argument.

    The server's Lua knows only the old msgpack, in which bytes and text are one type; msgspec cannot write that.
    """
    return _packer.pack(value)


class Batcher:
    """Gathers items while the previous batch is on its way: one round trip for many, without waiting for more.

    Args:
        flush: sends a batch; what it returns, one result for each item, is given to whoever put the item.
        ended: told when a task that sends batches has ended, well or not.
        most: items in one batch, so that one script never holds the server for long.
    """

    def __init__(self, flush: Any, ended: Any, most: int = 128) -> None:
        self._flush = flush
        self._ended = ended
        self._most = most
        self._waiting: list[tuple[Any, asyncio.Future[Any] | None]] = []
        self._task: asyncio.Task[None] | None = None

    def put(self, item: Any) -> None:
        """Send an item with the next batch."""
        self._waiting.append((item, None))
        self._start()

    def ask(self, item: Any) -> asyncio.Future[Any]:
        """Send an item with the next batch, and get its result."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
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
