"""Rate limits as a backend sees them: what options state, permits for requests, and what refusals teach."""

from __future__ import annotations

import math
from typing import Protocol

import msgspec

from gymq.errors import UsageError
from gymq.wire.json_types import JsonObject

#: Seconds' worth of a limit that may be used at once after a pause: the longest sleep of a process that waits for permits, so
#: that no permit is lost meanwhile.
BURST = 2.0


#: Seconds that a request waits for permits, over all its tries; less than the hour after which its call is overdue.
PERMIT_WAIT = 3000.0

#: Seconds by which a request may come later than another, and go first because its rollout is further along: a third of
#: PERMIT_WAIT, so that hardly one times out for that reason where a queue in order of arrival would serve it.
HEAD_START = 1000.0

#: Seconds of a server's Retry-After that are honoured; longer ones (quotas by the hour) would only hold a place.
MAX_RETRY_AFTER = 60.0


class Limit(msgspec.Struct, frozen=True):
    """A token bucket, as an option states it.

    Args:
        name: the counted unit, `requests` or `tokens`.
        rate: units a second.
        burst: units at once, after a pause; a full bucket grants a higher cost too, and goes into debt.
    """

    name: str
    rate: float
    burst: float


class Learning(msgspec.Struct, frozen=True):
    """Whether refusals make processes send less, and how far.

    Args:
        enabled: False: refusals delay only the requests that were refused.
        lowest: requests per second below which they never slow down.
    """

    enabled: bool = True
    lowest: float = 0.0


class Permit(msgspec.Struct):
    """A permit for one request.

    Args:
        costs: the request's cost of each limit.
        at: when it was granted, ms of Redis's clock; 0: no limit was in force.
        waited: seconds until it was granted.
        sent: when the request was let go, seconds of the process's monotonic clock.
    """

    costs: list[float]
    at: int = 0
    waited: float = 0.0
    sent: float = 0.0


def turn_in_queue(arrived: float, step: int) -> float:
    """Return the place of a request among those that wait for permits; the lowest goes first.

    A rollout that is further along goes first, so that rollouts end instead of advancing side by side. Its head start is
    bounded: a request that comes more than HEAD_START later never goes ahead, so that none waits for ever.

    Args:
        arrived: when its call came to the backend, seconds of any clock.
        step: how many steps its rollout has made.
    """
    return arrived - HEAD_START * step / (step + 1)


class Limiter(Protocol):
    """Grants permits for one endpoint's requests, within the limits that all processes share."""

    async def enter(self, patience: float = PERMIT_WAIT, place: float = 0.0, **costs: float) -> Permit:
        """Wait until a request may be sent.

        Args:
            patience: seconds to wait at most.
            place: its place among those that wait in this process, the lowest first: see `turn_in_queue`.
            costs: the request's cost of each limit by name; 1 where not said.

        Raises:
            CallError: `timeout`.
        """
        ...

    def correct(self, permit: Permit, **used: float) -> None:
        """Report a request's true cost.

        Args:
            permit: the request's permit.
            used: its true cost of each limit by name, where that differs from the estimate.
        """
        ...

    def refused(self, permit: Permit) -> None:
        """Report that the endpoint refused a request because there are too many.

        Args:
            permit: the request's permit.
        """
        ...

    async def close(self) -> None:
        """Close its connection."""
        ...


class Limited:
    """Base of each subject of rate limits: a backend, or an endpoint of one."""

    #: The rate limits of its `account`, set before `start`. It asks them for a `Permit` before each request, and reports how
    #: the request ended. None outside a worker.
    limiter: Limiter | None = None

    def account(self) -> str:
        """Return the key by which its server counts rate limits, a `gymq.runtime.rate_limit.digest`; "": it has no limits."""
        return ""

    def subject(self) -> str:
        """Return what its limits are of, in words and without a secret, such as `qwen at 10.0.0.1:8000`."""
        return ""


def limits(options: JsonObject) -> list[Limit]:
    """Return the limits of the options `rpm` and `tpm`, both per minute.

    Raises:
        UsageError: one is no number above 0.
    """
    stated: list[Limit] = []
    for option, name in (("rpm", "requests"), ("tpm", "tokens")):
        rate = _per_second(options, option, name)
        if rate is not None:
            stated.append(Limit(name, rate, max(1.0, rate * BURST)))
    return stated


def learning(options: JsonObject) -> Learning:
    """Return what the options `learn` and `min_rpm` say of refusals.

    Raises:
        UsageError: one of them makes no sense.
    """
    learn = options.get("learn")
    if str(learn).lower() not in ("none", "true", "1", "false", "0"):
        raise UsageError(f"learn is {learn!r}; set it to true or false")
    return Learning(str(learn).lower() not in ("false", "0"), _per_second(options, "min_rpm", "requests") or 0.0)


def _per_second(options: JsonObject, option: str, unit: str) -> float | None:
    """Return an option that is a number per minute, per second; None: it is not given."""
    value = options.get(option)
    if value is None:
        return None
    try:
        rate = float(value) / 60
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UsageError(f"{option} is {value!r}; set it to a number above 0, of {unit} per minute")
    return rate
