"""The time limits of isolated calls: time in which the executor stood still does not count."""

from __future__ import annotations

import time
from typing import Any

from gymq.loop_clock import TickedClock


def let_stalls_pass(pool: Any, hub: Any, clock: TickedClock) -> None:
    """Make billiard's pool look, before it kills a call at its time limit, whether that time has passed by a clock.

    Args:
        pool: billiard's, of which the parent's loop calls `_on_hard_timeout` with the number of a job.
        hub: Celery's loop.
        clock: the loop's.
    """
    kill = type(pool)._on_hard_timeout

    def look(job: int) -> None:
        result = pool._cache.get(job)
        if result is not None:
            began = result._time_accepted  # by the monotonic clock, which all processes of a machine share
            left = began + result._timeout + clock.stalled_since(began) - time.monotonic()
            if left > 0:
                pool._tref_for_id[job] = hub.call_later(left, look, job)
                return
        kill(pool, job)

    pool._on_hard_timeout = look
