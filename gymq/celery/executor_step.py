"""An executor's end: it takes no more calls, and stays visible until those in work have ended or its time is over.

Celery's own warm shutdown closes the consumer first, and with it events, heartbeats and remote control, and waits for ever.
"""

from __future__ import annotations

# Celery and kombu have no stubs.
# pyright: reportMissingTypeStubs=false
import os
import signal
import time
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.platforms import EX_OK
from celery.worker import state

from gymq.celery.actor_step import Hub, drain_limit
from gymq.celery.queues import EXECUTOR, ISOLATED_QUEUE
from gymq.observe.events import Draining, emit
from gymq.observe.metrics import WorkerGauges
from gymq.runtime.worker_host import RoleOptions

#: Seconds between two looks at whether the calls have ended.
CHECK_INTERVAL = 0.1

#: Celery's base of steps, seen as untyped.
_Step: Any = bootsteps.StartStopStep


class DrainStep(_Step):
    """The step of the worker that ends an executor in order, and its `WorkerHost`.

    Args:
        worker: Celery's worker.
        role: the worker's role; this is for executors.
        role_options: the role's options; `drain_limit` in seconds.
    """

    requires = ("celery.worker.components:Hub", "celery.worker.components:Pool")

    def __init__(self, worker: Any, role: str | None = None, role_options: RoleOptions | None = None, **_: object) -> None:
        self.enabled = role == EXECUTOR
        self._worker = worker
        self._limit = drain_limit(role_options or {})
        self._deadline: float | None = None
        self._cancelled = False

    def create(self, parent: Any) -> None:
        """Stand where remote control finds the worker's host."""
        parent.gymq = self

    def start(self, parent: object) -> None:
        """Take the signals over from Celery, which installed its handlers just before."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def stop(self, parent: object) -> None:
        """End without more: the drain is over by now."""

    def register_with_event_loop(self, parent: object, hub: Hub) -> None:
        """Set the timer; Celery calls this on every connection."""
        self._cancelled = False
        hub.call_repeatedly(CHECK_INTERVAL, self._look)

    def drain(self) -> None:
        """Take no more calls, and end when those in work have ended; may be called again."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._limit
            if not state.reserved_requests:
                state.should_stop = EX_OK

    def wake(self) -> None:
        """Return at once: an executor admits nothing."""

    def stats(self) -> dict[str, Any]:
        """Return the numbers for `celery inspect stats`."""
        return {"role": EXECUTOR, "held": len(state.reserved_requests), "draining": self._deadline is not None}

    def gauges(self) -> WorkerGauges:
        """Return how many calls it has in hand."""
        processes = self._worker.concurrency
        return WorkerGauges(EXECUTOR, len(state.reserved_requests), processes, self._deadline is None)

    def alive(self) -> bool:
        """Return True: it is asked on the loop that would have to turn."""
        return True

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM and self._deadline is None:
            self.drain()
        else:
            self._kill()

    def _look(self) -> None:
        if self._deadline is None:
            return
        if not self._cancelled:
            self._cancelled = True
            if state.should_stop is None:
                # Not in `drain`, which a signal's handler calls.
                emit(Draining(EXECUTOR, "", len(state.reserved_requests)))
            self._worker.consumer.cancel_task_queue(ISOLATED_QUEUE)
        if not state.reserved_requests:
            state.should_stop = EX_OK
        elif time.monotonic() > self._deadline:
            self._kill()

    def _kill(self) -> None:
        # Calls whose children are killed now get no answer from here: once this executor has lapsed they are sent to others.
        state.should_terminate = True
        for child in getattr(getattr(self._worker.pool, "_pool", None), "_pool", None) or ():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # each leads a group of its own
