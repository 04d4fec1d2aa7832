"""An executor's end: it takes no more calls, and stays visible until those in work have ended or its time is over.

Celery's own warm shutdown closes the consumer first, and with it events, heartbeats and remote control, and waits for ever.
"""

from __future__ import annotations

# Celery and kombu have no stubs.
# pyright: reportMissingTypeStubs=false
import atexit
import os
import signal
import time
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.platforms import EX_OK
from celery.worker import state

from gymq.celery.actor_step import EXIT_LIMIT, Hub, die, drain_limit
from gymq.celery.queues import EXECUTOR, ISOLATED_QUEUE
from gymq.errors import ServerUnreachable
from gymq.observe.events import Draining, emit
from gymq.observe.metrics import WorkerGauges
from gymq.runtime.worker_host import RoleOptions
from gymq.store.connection import OUTAGE_LIMIT

#: Seconds between two looks at whether the calls have ended.
CHECK_INTERVAL = 0.1

#: Seconds between two looks at whether Celery's loop turns, once the executor is to end.
ALARM_INTERVAL = 0.5

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
        self._looked = 0.0

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
        """Set the timer; Celery calls this on every connection.

        Args:
            parent: the worker's consumer.
            hub: its event loop.
        """
        self._cancelled = False
        hub.call_repeatedly(CHECK_INTERVAL, self._look)

    def drain(self) -> None:
        """Take no more calls, and end when those in work have ended; may be called again."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._limit
            self._bound_end()
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

    def _bound_end(self) -> None:
        """See to it that the process ends: Celery's loop stands still while Redis is away.

        By an alarm, as a process that forks should have no thread for it.
        """
        self._looked = time.monotonic()
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, ALARM_INTERVAL, ALARM_INTERVAL)
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # the interpreter's end forgets the handler

    def _on_alarm(self, _number: int, _frame: object) -> None:
        still = time.monotonic() - self._looked
        if state.should_stop is not None or state.should_terminate is not None:
            if still > EXIT_LIMIT:
                die(f"the executor did not end within {EXIT_LIMIT:g} s of its calls")
        elif still > OUTAGE_LIMIT:
            # Its children die with it; other executors run their calls again.
            die(f"the executor's loop stands still, as Redis has been away for {OUTAGE_LIMIT:g} s", ServerUnreachable.exit_code)

    def _look(self) -> None:
        if self._deadline is None:
            return
        self._looked = time.monotonic()
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
        if not state.should_terminate:
            self._bound_end()
        state.should_terminate = True
        for child in getattr(getattr(self._worker.pool, "_pool", None), "_pool", None) or ():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # each leads a group of its own
