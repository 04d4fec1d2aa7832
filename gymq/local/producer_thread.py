"""The producer of a `gymq run` in a thread of its own: reading and parsing rows must not hold up the watch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from gymq.errors import ServerUnreachable

#: Seconds that the producer may take to notice that it is to stop: it may be reading a row of a slow source.
STOP_LIMIT = 5.0

#: Seconds between two tries while Redis cannot be reached.
RETRY_INTERVAL = 0.5


class ProducerThread:
    """A thread that enqueues the rows of a run.

    Args:
        produce: enqueues them all; those that are enqueued already are passed over.
    """

    def __init__(self, produce: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._produce = produce
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread()

    def start(self) -> None:
        """Begin, or begin again."""
        self._thread = threading.Thread(target=self._work, name="gymq-producer", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """True once everything is enqueued."""
        return self._thread.ident is not None and not self._thread.is_alive() and self._failure is None

    def check(self) -> None:
        """Raise the error that has ended the thread, if one has."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End the thread; the rows that it has enqueued stay."""
        self._stopped.set()
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._task.cancel)
        if self._thread.ident is not None:
            self._thread.join(STOP_LIMIT)

    def _work(self) -> None:
        async def produce() -> None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            await self._produce()

        while not self._stopped.is_set():
            try:
                return asyncio.run(produce())
            except asyncio.CancelledError:
                return
            except ServerUnreachable:
                self._stopped.wait(RETRY_INTERVAL)  # it comes back, or the watch gives up
            except Exception as error:
                self._failure = error
                return
