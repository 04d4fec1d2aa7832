"""A worker's activity: where the time of the last minute went, and what it does now. It is published with the heartbeat."""

from __future__ import annotations

import msgspec

#: Seconds that an activity looks back: long enough for several answers of a slow model, short enough to show a change.
WINDOW = 60.0

#: The stages of a call's time, in the order of a rollout: in a mailbox, behind a rate limit, in work by kind.
STAGES = ("queue", "limit", "model", "tool", "verify")

#: The stage of the work of each kind of call; `tool` for tools and the hooks beside `verify`.
_WORK = {"generate": "model", "ask": "model", "verify": "verify"}


def stage(kind: str) -> str:
    """Return the stage of the work of a kind of call: `model`, `tool` or `verify`."""
    return _WORK.get(kind, "tool")


class CallTimes(msgspec.Struct, omit_defaults=True):
    """The calls of one kind that ended in the window; seconds are sums over all of them.

    Args:
        calls: their number.
        faults: how many of them ended with a fault.
        queued: seconds in the mailbox.
        limited: seconds of the work in which they waited for a rate limit, or for new weights.
        worked: the other seconds of the work.
    """

    calls: int = 0
    faults: int = 0
    queued: float = 0.0
    limited: float = 0.0
    worked: float = 0.0

    def add(self, other: CallTimes) -> None:
        """Add those of another worker, or of a later time."""
        self.calls += other.calls
        self.faults += other.faults
        self.queued += other.queued
        self.limited += other.limited
        self.worked += other.worked


class InWork(msgspec.Struct, omit_defaults=True):
    """The calls of one kind that a worker has in work.

    Args:
        calls: their number.
        seconds: for which they have been in work, those before the window aside; a sum.
        oldest: seconds since the oldest was begun.
    """

    calls: int = 0
    seconds: float = 0.0
    oldest: float = 0.0

    def add(self, other: InWork) -> None:
        """Add those of another worker."""
        self.calls += other.calls
        self.seconds += other.seconds
        self.oldest = max(self.oldest, other.oldest)


class Activity(msgspec.Struct, omit_defaults=True):
    """What a process did in the last minute, and does now; or the sum over several.

    Args:
        ended: the calls that ended, by kind.
        working: the calls in work, by kind.
        refused: requests that a model's server refused because there were too many (HTTP 429).
        errors: requests that failed otherwise: HTTP 5xx, no connection, no answer in time.
        resent: calls that rollouts send again after a fault.
        fault: the newest fault or failure of a request.
    """

    ended: dict[str, CallTimes] = {}
    working: dict[str, InWork] = {}
    refused: int = 0
    errors: int = 0
    resent: int = 0
    fault: str = ""

    @property
    def answers(self) -> int:
        """Calls of a model that ended without a fault."""
        return sum(times.calls - times.faults for kind, times in self.ended.items() if stage(kind) == "model")


def rounded(activity: Activity) -> Activity:
    """Return an activity with its seconds rounded to milliseconds: every worker reads the registry once a second."""
    ended = {
        kind: CallTimes(times.calls, times.faults, round(times.queued, 3), round(times.limited, 3), round(times.worked, 3))
        for kind, times in activity.ended.items()
    }
    working = {
        kind: InWork(work.calls, round(work.seconds, 3), round(work.oldest, 3)) for kind, work in activity.working.items()
    }
    return msgspec.structs.replace(activity, ended=ended, working=working)


def merge(activities: list[Activity]) -> Activity:
    """Return the sum of the activities of several processes."""
    total = Activity()
    for one in activities:
        for kind, times in one.ended.items():
            total.ended.setdefault(kind, CallTimes()).add(times)
        for kind, work in one.working.items():
            total.working.setdefault(kind, InWork()).add(work)
        total.refused += one.refused
        total.errors += one.errors
        total.resent += one.resent
        total.fault = one.fault or total.fault
    return total


def time_split(activity: Activity, limited: int = 0) -> dict[str, float]:
    """Return the seconds that calls spent in each of `STAGES` in the last minute, those in work included.

    Args:
        activity: the activity of all workers.
        limited: calls in work that wait for a rate limit; each is taken for an average one.
    """
    seconds = dict.fromkeys(STAGES, 0.0)
    for kind, times in activity.ended.items():
        seconds["queue"] += times.queued
        seconds["limit"] += times.limited
        seconds[stage(kind)] += times.worked
    in_work, held = 0, 0.0
    for kind, work in activity.working.items():
        seconds[stage(kind)] += work.seconds
        if stage(kind) == "model":
            in_work, held = in_work + work.calls, held + work.seconds
    if in_work:
        held *= min(limited / in_work, 1.0)
        seconds["model"] -= held
        seconds["limit"] += held
    return seconds
