"""Additions to asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


async def cancel_and_wait(tasks: Iterable[asyncio.Task[object]]) -> None:
    """Cancel tasks again and again until they have ended.

    Once is not enough: `asyncio.wait_for`, which the Redis client uses, loses cancellations in Python 3.11.
    """
    tasks = list(tasks)
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)


class LoopThread:
    """A loop in a thread of its own: it serves synchronous code, also where the caller's loop is running.

    Args:
        name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Awaitable[T]) -> T:
        """Run something awaitable to its end and return its result; an exception in the caller's thread cancels it."""
        future = self._submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def run_async(self, work: Awaitable[T]) -> T:
        """Do the same while the caller's loop goes on."""
        return await asyncio.wrap_future(self._submit(work))

    def close(self) -> None:
        """End the thread, if it was started."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    def _submit(self, work: Awaitable[T]) -> Future[T]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._live, args=(self._loop,), name=self._name, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(_awaited(work), self._loop)

    @staticmethod
    def _live(loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        loop.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result, also where this thread's loop is running: in a notebook, say."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    thread = LoopThread("gymq-blocking")
    try:
        return thread.run(work)
    finally:
        thread.close()
