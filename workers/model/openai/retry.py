"""What is worth another try, and when: a policy without a clock, a connection or a random number of its own.

A failure that may pass (`Transient`) is tried again, after a wait that doubles each time and is spread at random over its
whole length, so that hundreds of calls that failed together do not come back together. A server that names a time is not
asked sooner. Both the number of tries and the time from the first try to the last are bounded; then the call ends with a fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from gymq.api.backend import MAX_RETRY_AFTER
from gymq.errors import CallError, FaultKind

#: Further tries after the first. With the waits below they span about a minute: a load balancer's hiccup, not an outage,
#: for which the rollout's own budget is there.
RETRIES = 8

#: Seconds after the first try in which a further one may begin: two time-outs of the default 600 s, and the waits between.
RETRY_WINDOW = 1500.0

#: Seconds that the first wait may last; a connection closed by the server while idle is tried again at once, on average.
FIRST_WAIT = 0.5

#: Seconds that a wait may last at most; a server that is back is found within this.
LONGEST_WAIT = 30.0

#: Statuses below 500 that may pass: time-out, conflict, too early, too many requests.
PASSING = frozenset({408, 409, 425, 429})


class Transient(Exception):
    """One try failed in a way that may pass.

    Args:
        message: one line without secrets.
        retry_after: seconds in which the server does not want to be asked, or None.
        kind: the fault when the budget is spent.
        limited: the server refused it because there were too many requests.
    """

    def __init__(
        self,
        message: str,
        retry_after: float | None = None,
        kind: FaultKind = "model_unavailable",
        limited: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.kind: FaultKind = kind
        self.limited = limited


class RetrySchedule:
    """The tries of one call.

    Args:
        retries: further tries after the first.
        start: when the first try began, in seconds of any clock.
    """

    __slots__ = ("_deadline", "_retries", "tries")

    def __init__(self, retries: int, start: float) -> None:
        self._retries = retries
        self._deadline = start + RETRY_WINDOW
        self.tries = 1

    def wait(self, failure: Transient, now: float, chance: float) -> float:
        """How many seconds to wait before the next try.

        Args:
            failure: what became of the last one.
            now: the time, on the clock of `start`.
            chance: a random number from 0 to 1.

        Raises:
            CallError: the budget is spent; the fault is the failure's.
        """
        wait = chance * min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (self.tries - 1))
        if failure.retry_after is not None:
            wait += min(MAX_RETRY_AFTER, failure.retry_after)
        if self.tries > self._retries or now + wait > self._deadline:
            tried = "once" if self.tries == 1 else f"{self.tries} times"
            raise CallError(failure.kind, f"{failure.message} (tried {tried})")
        self.tries += 1
        return wait


def passes(status: int) -> bool:
    """Whether a request that got this HTTP status is worth another try."""
    return status >= 500 or status in PASSING


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds in which a server does not want to be asked, from its Retry-After; None where it says nothing sensible.

    Args:
        headers: the answer's headers.
        now: seconds since the epoch.
    """
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        if when.tzinfo is None:  # a date in "-0000" comes back naive and means UTC
            when = when.replace(tzinfo=UTC)
        seconds = (when - datetime.fromtimestamp(now, UTC)).total_seconds()
    return None if math.isnan(seconds) else max(0.0, seconds)
