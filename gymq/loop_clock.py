"""The clock of a loop: it advances only while the loop turns, so that a process that stood still has not let time pass.

A process may be stopped, swapped out, starved, or its machine paused; on waking, timers of the monotonic clock are due at once,
before what came in the meantime is read. Limits of calls, and judgements of others, therefore count by this clock.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol
from weakref import WeakKeyDictionary

#: Seconds between two ticks: 4 calls a second are nothing, and a stall of half a second is noticed.
STEP = 0.25

#: Stalls that are remembered: more than one call's time limit sees.
STALLS = 100


class Clock(Protocol):
    """A clock for ages and limits."""

    def now(self) -> float:
        """Return seconds since some moment."""
        ...


class TickedClock:
    """A monotonic clock fed by ticks of any loop; of a step that is longer than two ticks, the rest is cut.

    Args:
        step: seconds between two ticks.
        read: the clock by which steps are measured, in seconds.
    """

    def __init__(self, step: float = STEP, read: Callable[[], float] = time.monotonic) -> None:
        self._step = step
        self._read = read
        self._last = read()
        self._now = 0.0
        #: The last stalls: when each ended, by the other clock, and the seconds that were cut.
        self._stalls: deque[tuple[float, float]] = deque(maxlen=STALLS)

    def now(self) -> float:
        """Tick, and return the seconds in which the loop has turned."""
        last, self._last = self._last, self._read()
        stalled = self._last - last - 2 * self._step
        if stalled > 0:
            self._stalls.append((self._last, stalled))
        self._now += min(self._last - last, 2 * self._step)
        return self._now

    def stalled_since(self, when: float) -> float:
        """Tick, and return the seconds that were cut since a time.

        Args:
            when: the time, by the other clock.
        """
        self.now()
        return sum(seconds for end, seconds in self._stalls if end > when)


class LoopClock(TickedClock):
    """The clock of the loop that runs when it is first read: from then on it ticks by itself; see `TickedClock`."""

    _ticking = False

    def now(self) -> float:
        """Return the seconds in which the loop has turned."""
        if not self._ticking:
            self._ticking = True
            self._tick()
        return super().now()

    def _tick(self) -> None:
        super().now()
        asyncio.get_running_loop().call_later(self._step, self._tick)


_clocks: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopClock] = WeakKeyDictionary()


def loop_clock() -> LoopClock:
    """Return the running loop's clock."""
    loop = asyncio.get_running_loop()
    clock = _clocks.get(loop)
    if clock is None:
        clock = _clocks[loop] = LoopClock()
        clock.now()  # it ticks from now on
    return clock


class TimeLimit:
    """A limit of seconds on a block, by the loop's clock: `async with TimeLimit(3.0):` raises `TimeoutError` beyond it.

    Each call has a limit or two, and hardly any reaches it: the clock is read when one seems to.

    Args:
        seconds: the limit; None: there is none.
    """

    __slots__ = ("_began", "_clock", "_left", "_loop", "_scope", "_timer")

    def __init__(self, seconds: float | None) -> None:
        self._left = seconds
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> TimeLimit:
        self._loop = asyncio.get_running_loop()
        self._clock = loop_clock()
        self._scope = asyncio.timeout(None)
        await self._scope.__aenter__()
        self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._scope.__aexit__(kind, error, trace)

    def pause(self) -> None:
        """Let no time count until `resume`."""
        if self._timer is not None and self._left is not None:
            self._timer.cancel()
            self._timer = None
            self._left += self._clock.stalled_since(self._began) - (self._loop.time() - self._began)

    def resume(self) -> None:
        """Let time count again."""
        if self._timer is None and self._left is not None:
            self._began = self._loop.time()
            self._timer = self._loop.call_at(self._began + self._left, self._look)

    def expired(self) -> bool:
        """Return whether the limit was reached."""
        return self._scope.expired()

    def _look(self) -> None:
        assert self._left is not None
        now = self._loop.time()
        until = self._began + self._left + self._clock.stalled_since(self._began)
        if until > now:
            self._timer = self._loop.call_at(until, self._look)
        else:
            self._timer, self._left = None, None
            self._scope.reschedule(now)
