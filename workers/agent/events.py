"""Rollouts as Celery task events for Flower: all failures, and as many others as Flower survives."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from gymq.runtime.worker_host import Event

from .state import LiveRollout

#: Rollouts that one agent worker shows per second. Each is three events; Flower's one thread does a few hundred a second.
SHOWN_PER_SECOND = 10.0

#: Failures that one agent worker shows per second; beyond that they are still in the results and in the counters.
FAILURES_PER_SECOND = 50.0


class EventAllowance:
    """A token bucket: so many events per second, and as many at once.

    Args:
        rate: per second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = rate
        self._at = time.monotonic()

    def take(self) -> bool:
        """Take one, if there is one."""
        now = time.monotonic()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class RolloutEvents:
    """Turns rollouts into Celery events.

    Args:
        events: where events wait to be sent.
        host: this machine's name.
    """

    def __init__(self, events: deque[Event], host: str) -> None:
        self._events = events
        self._host = host
        self._sample = EventAllowance(SHOWN_PER_SECOND)
        self._failures = EventAllowance(FAILURES_PER_SECOND)

    def begun(self, live: LiveRollout) -> bool:
        """Announce that a rollout begins; returns whether it is shown."""
        if not self._sample.take():
            return False
        self._announce(live, time.time())
        return True

    def _announce(self, live: LiveRollout, at: float) -> None:
        run, row, sample = live.id
        self._events.append(
            (
                "task-received",
                {
                    "uuid": live.rid,
                    "name": f"rollout:{live.task.environment}",
                    "args": f"run={run} task={live.task.id or row} sample={sample}",
                    "kwargs": "",
                    "root_id": live.rid,
                    "timestamp": at,
                },
            )
        )
        self._events.append(("task-started", {"uuid": live.rid, "timestamp": at}))

    def ended(self, live: LiveRollout) -> None:
        """Announce that a rollout has ended."""
        state = live.state
        failed = state.status == "failed"
        if not state.shown:
            if not (failed and self._failures.take()):
                return
            self._announce(live, state.started_at)
        now = time.time()
        reward = state.score.reward if state.score else None
        if failed and state.fault is not None:
            text = f"{state.fault.kind}: {state.fault.message}"
            fields: dict[str, Any] = {"exception": text, "traceback": f"{text}\nturns={state.turns}"}
        else:
            fields = {
                "result": f"reward={reward} status={state.status} turns={state.turns}",
                "runtime": now - state.started_at,
            }
        self._events.append(("task-failed" if failed else "task-succeeded", {"uuid": live.rid, "timestamp": now, **fields}))
