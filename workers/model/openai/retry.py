"""Retries of one request to a model server: which failures are worth one, when it is due, and when to give up.

A failure that may pass (`Transient`) is retried after an exponential back-off, spread at random over its whole length, so that
hundreds of calls that failed together do not come back together, and no sooner than the server's Retry-After. The number of
tries and the time from the first to the last are bounded; then the call ends with a fault, for which the rollout has a budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from gymq.api.limiter import MAX_RETRY_AFTER
from gymq.backoff import backoff
from gymq.errors import CallError, FaultKind

#: Tries after the first. With the waits below they span about a minute, enough for a load balancer's hiccup; an outage is for
#: the rollout's own budget.
RETRIES = 8

#: Seconds after the first try in which another may begin: two time-outs of the default 600 s, and the waits between.
RETRY_WINDOW = 1500.0

#: Seconds that the first wait lasts at most: a connection that the server closed while idle needs hardly any.
FIRST_WAIT = 0.5

#: Seconds that a wait lasts at most: a server that is back is noticed within this.
LONGEST_WAIT = 30.0

#: HTTP statuses below 500 that may pass: time-out, conflict, too early, too many requests.
PASSING = frozenset({408, 409, 425, 429})


class Transient(Exception):
    """The failure of one try that may pass.

    Args:
        message: one line without secrets.
        retry_after: seconds in which the server wants no request, or None.
        kind: the kind of the fault once no try is left.
        limited: whether the server refused it because there are too many requests.
        status: HTTP's; 0: there was no answer, or one that cannot be read.
    """

    def __init__(
        self,
        message: str,
        retry_after: float | None = None,
        kind: FaultKind = "model_unavailable",
        limited: bool = False,
        status: int = 0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after
        self.kind: FaultKind = kind
        self.limited = limited


class Refusal(CallError):
    """The refusal of a request that stays.

    Args:
        status: HTTP's; 0: the answer cannot be read or trusted.
        kind: the kind of the fault.
        message: one line without secrets.
    """

    def __init__(self, status: int, kind: FaultKind, message: str) -> None:
        super().__init__(kind, message)
        self.status = status


class RetrySchedule:
    """The tries of one call.

    Args:
        retries: tries after the first.
        start: when the first try began, seconds of any clock.
    """

    __slots__ = ("_deadline", "_retries", "tries")

    def __init__(self, retries: int, start: float) -> None:
        self._retries = retries
        self._deadline = start + RETRY_WINDOW
        self.tries = 1

    def wait(self, failure: Transient, now: float, chance: float) -> float:
        """Return the seconds to wait before the next try.

        Args:
            failure: the last try's.
            now: seconds on the clock of `start`.
            chance: a random number from 0 to 1.

        Raises:
            CallError: no try is left; its fault has the failure's kind.
        """
        wait = chance * backoff(self.tries, FIRST_WAIT, LONGEST_WAIT)
        if failure.retry_after is not None:
            wait += min(MAX_RETRY_AFTER, failure.retry_after)
        if self.tries > self._retries or now + wait > self._deadline:
            tried = "once" if self.tries == 1 else f"{self.tries} times"
            raise CallError(failure.kind, f"{failure.message} (tried {tried})")
        self.tries += 1
        return wait


def passes(status: int) -> bool:
    """Return whether a request that got this HTTP status is worth another try."""
    return status >= 500 or status in PASSING


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds of a Retry-After; None without a sensible one. `retry-after-ms`, OpenAI's and Azure's, is exacter.

    Args:
        headers: the answer's headers.
        now: seconds since the epoch.
    """
    milliseconds = headers.get("retry-after-ms")
    if milliseconds is not None:
        try:
            exact = float(milliseconds) / 1000
        except ValueError:
            exact = math.nan
        if not math.isnan(exact):
            return max(0.0, exact)
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
