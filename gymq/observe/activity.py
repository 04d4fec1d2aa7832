"""The recorder of a process's activity: made of the events of the last minute, published with the heartbeat."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import cache

from gymq.observe import events
from gymq.wire.activity import WINDOW, Activity, CallTimes, InWork, merge, rounded

#: Seconds of events that are counted together; by as much the window may be too long.
SLICE = 5.0


class ActivityRecorder:
    """Counts a process's events over the last minute; they and its heartbeats come from one loop.

    Args:
        clock: returns the time in seconds; tests set it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slices: deque[tuple[float, Activity]] = deque()

    def subscribe(self) -> None:
        """Count from now on."""
        events.subscribe(events.StepCommitted, self.step_committed)
        events.subscribe(events.CallRetried, self.call_retried)
        events.subscribe(events.ModelRequested, self.model_requested)

    def step_committed(self, event: events.StepCommitted) -> None:
        """Count the calls whose replies a step took in."""
        if not event.calls:
            return
        now = self._slice()
        for call in event.calls:
            times = now.ended.get(call.kind)
            if times is None:
                times = now.ended[call.kind] = CallTimes()
            started, waited = call.started, call.waited
            queued, worked = started - call.queued, call.finished - started - waited
            times.calls += 1
            times.limited += waited
            # Clocks of two machines differ.
            if queued > 0:
                times.queued += queued
            if worked > 0:
                times.worked += worked
            if call.fault is not None:
                times.faults += 1
                now.fault = f"{call.kind}: {call.fault.kind}: {call.fault.message}"

    def call_retried(self, event: events.CallRetried) -> None:
        """Count a call that will be sent again."""
        self._slice().resent += 1

    def model_requested(self, event: events.ModelRequested) -> None:
        """Count a request that a model's server refused or failed."""
        if 0 < event.status < 500 and event.status != 429:
            return
        now = self._slice()
        if event.status == 429:
            now.refused += 1
        else:
            now.errors += 1
        now.fault = f"HTTP {event.status} from {event.endpoint}" if event.status else f"no usable answer from {event.endpoint}"

    def activity(self, working: dict[str, InWork]) -> Activity:
        """Return the activity of the last minute.

        Args:
            working: the calls that the process has in work now, by kind.
        """
        now = self._clock()
        while self._slices and self._slices[0][0] < now - WINDOW:
            self._slices.popleft()
        total = merge([counted for _, counted in self._slices])
        total.working = working
        return rounded(total)

    def _slice(self) -> Activity:
        now = self._clock()
        if not self._slices or now - self._slices[-1][0] >= SLICE:
            self._slices.append((now, Activity()))
            if self._slices[0][0] < now - WINDOW - SLICE:
                self._slices.popleft()
        return self._slices[-1][1]


@cache
def recorder() -> ActivityRecorder:
    """Return the recorder of this process, which counts since it was first asked for."""
    made = ActivityRecorder()
    made.subscribe()
    return made
