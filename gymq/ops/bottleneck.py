"""The bottleneck of a run, in words: what it waits for, and what helps. A pure function of its situation."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gymq.celery.queues import EXECUTOR
from gymq.errors import one_line
from gymq.ops.mailboxes import Mailbox
from gymq.ops.situation import Situation, remedy
from gymq.store.run_status import RunStatus
from gymq.store.scripts import RateLimitStatus
from gymq.wire.activity import WINDOW, Activity, stage, time_split

#: Share of failed requests from which a model's server counts as failing: fewer are retried without much delay.
MANY_FAILURES = 0.2


class Bottleneck(msgspec.Struct):
    """The cause for which a run waits.

    Args:
        cause: one word for programs: `stopped`, `paused`, `no_worker`, `starting`, `consumer`, `rows`, `limit`, `errors`,
            `retries`, `executor`, `queue`, `model`, `tool`, `verify`.
        words: a sentence's end: a run waits for ... .
    """

    cause: str
    words: str


def bottleneck(situation: Situation) -> Bottleneck:
    """Return what a run waits for most."""
    missing, activity = _missing(situation), situation.workforce.activity
    seconds = stage_seconds(activity, situation.mailboxes.values(), situation.limits)
    total = sum(seconds.values())
    if total > seconds["queue"] and not situation.private and not any(box.waiting for box in situation.mailboxes.values()):
        seconds["queue"] = 0.0  # what waited was taken: more workers would find nothing
    most = max(seconds, key=lambda name: seconds[name])
    idle = not seconds[most]
    # A judge that nothing has asked yet stops nothing.
    stopped = idle or any(box.waiting for box in _unserved(situation))
    for found in (
        _stopped(situation.run),
        _paused(situation),
        missing if stopped else None,
        _retries(situation),
        _limit(situation) if most == "limit" else None,
        _errors(activity) if most in ("model", "limit") else None,
        _consumer(situation) if idle or situation.run.live < situation.run.config.concurrency else None,
        _rows(situation) if idle else None,
        _executor(situation) if most in ("tool", "verify") else None,
    ):
        if found is not None:
            return found
    if idle:
        return Bottleneck("queue", "its first calls")
    share = f"{seconds[most] / total:.0%} of the last minute's time"
    if most == "limit":
        return Bottleneck("limit", f"rate limits, or new weights: calls in work stand still for them ({share})")
    return _queue(situation, share) if most == "queue" else _work(situation, most, share)


def stage_seconds(activity: Activity, mailboxes: Iterable[Mailbox], limits: list[RateLimitStatus]) -> dict[str, float]:
    """Return the seconds of the last minute that went to each stage; calls that are not over are included.

    Args:
        activity: what all workers did.
        mailboxes: where calls wait.
        limits: what holds requests to models back.
    """
    seconds = time_split(activity, sum(limit.waiting for limit in limits))
    for box in mailboxes:
        # They have waited for half as long as the oldest on average. Isolated calls are in work at a resource worker.
        seconds["queue"] += 0.0 if box.name == EXECUTOR else box.waiting * min(box.oldest, WINDOW) / 2
    return seconds


def clock(seconds: float) -> str:
    """Return a time as minutes and seconds, `2:05`, or with hours."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def limit_words(limit: RateLimitStatus) -> str:
    """Return what a rate limit is, as a person reads it."""
    option = {"requests": "--rpm", "tokens": "--tpm"}.get(limit.limit)
    rate = (
        f"{60 * limit.rate:.3g} {limit.limit}/min ({option})"
        if option
        else f"{limit.rate:.3g} requests/s, learned from refusals"
    )
    refused = f", {limit.refused} were refused (HTTP 429)" if limit.refused else ""
    return f"{one_line(limit.label)}, {rate}: {limit.waiting} requests wait{refused}"


def _stopped(run: RunStatus) -> Bottleneck | None:
    if not run.stopped:
        return None
    return Bottleneck("stopped", f"the same `gymq run` again: it was stopped, because {one_line(run.stopped)}")


def _paused(situation: Situation) -> Bottleneck | None:
    if situation.run.live:
        return None
    name = situation.run.config.name if situation.run.paused else ""
    if not (name or situation.paused):
        return None
    return Bottleneck(
        "paused", f"the end of a pause: `{' '.join(filter(None, ('gymq control resume', name, situation.attended)))}`"
    )


def _unserved(situation: Situation) -> list[Mailbox]:
    return [box for box in situation.mailboxes.values() if not box.workers]


def _missing(situation: Situation) -> Bottleneck | None:
    """Return the mailboxes without a worker: one that starts will come, others have to be started."""
    unserved = [box.name for box in _unserved(situation)]
    starting = situation.workforce.starting
    absent = [name for name in unserved if name not in starting]
    if absent and situation.attended is None:
        return Bottleneck("no_worker", f"a worker of {', '.join(absent)}: start {', '.join(map(remedy, absent))}")
    if not unserved:
        return None
    late = [name for name in unserved if name in starting]
    parts = [f"{name} to load ({clock(starting[name])} so far)" for name in late if name.startswith("model:")]
    parts += [f"the worker of {name} to start ({clock(starting[name])} so far)" for name in late if name[:6] != "model:"]
    parts += [f"the worker of {', '.join(absent)} to start"] if absent else []
    return Bottleneck("starting", " and ".join(parts))


def _retries(situation: Situation) -> Bottleneck | None:
    """Return the pauses before new tries, if most rollouts are in one: they have no call anywhere."""
    boxes = situation.mailboxes.values()
    busy = sum(box.waiting + box.taken for box in boxes if box.name != EXECUTOR) + situation.private
    resting, activity = situation.run.live - busy, situation.workforce.activity
    if not activity.resent or resting <= situation.run.live / 2:
        return None
    words = f"new tries: {resting} rollouts pause after a fault, {activity.resent} calls were sent again in the last minute"
    return Bottleneck("retries", _newest(words, activity))


def _limit(situation: Situation) -> Bottleneck | None:
    """Return the limit for which most requests wait; None: none does now."""
    limit = max(situation.limits, key=lambda each: each.waiting, default=None)
    return None if limit is None or not limit.waiting else Bottleneck("limit", f"the rate limit of {limit_words(limit)}")


def _errors(activity: Activity) -> Bottleneck | None:
    failed, answers = activity.refused + activity.errors, activity.answers
    if failed <= MANY_FAILURES * (failed + answers):
        return None
    kinds = [f"{activity.refused} with HTTP 429"] if activity.refused else []
    kinds += [f"{activity.errors} with other errors"] if activity.errors else []
    words = f"the model's server, which refused or failed {failed} of {failed + answers} requests of the last minute"
    return Bottleneck("errors", _newest(f"{words} ({', '.join(kinds)})", activity))


def _newest(words: str, activity: Activity) -> str:
    return f"{words}; the newest: {activity.fault}" if activity.fault else words


def _consumer(situation: Situation) -> Bottleneck | None:
    """Return the slowest consumer, if admission or the run's end waits for it."""
    run = situation.run
    name, unread = max(run.unread.items(), key=lambda each: each[1], default=("", 0))
    ahead = run.config.ahead  # of trainers that bound staleness: rollouts in flight and unused ones
    if run.admitted < run.total and (unread >= run.config.backlog or (ahead and run.live + unread >= ahead and unread)):
        return Bottleneck("consumer", f"consumer {name}: it has not acknowledged {unread} finished rollouts")
    if run.state != "open" and run.ended >= run.total and unread:
        return Bottleneck("consumer", f"consumer {name} to take the last {unread} rollouts")
    return None


def _rows(situation: Situation) -> Bottleneck | None:
    run = situation.run
    if run.state == "open" and not run.live and run.admitted >= run.total:
        return Bottleneck(
            "rows", f"its producer: {f'all {run.rows} rows so far are done' if run.rows else 'no row has come yet'}"
        )
    return None


def _executor(situation: Situation) -> Bottleneck | None:
    box = situation.mailboxes.get(EXECUTOR)
    if box is None or not box.waiting:
        return None
    return Bottleneck(
        "executor",
        f"executors: {box.taken} isolated calls run, {box.waiting} wait; start more: {remedy(EXECUTOR, situation.attended)}",
    )


def _queue(situation: Situation, share: str) -> Bottleneck:
    """Return the mailbox in which most waits."""

    def weight(box: Mailbox) -> tuple[float, int]:
        return box.waiting * box.oldest, box.taken

    box = max((box for box in situation.mailboxes.values() if box.name != EXECUTOR), key=weight)
    if not (box.waiting or situation.private):
        return Bottleneck("queue", f"workers of {box.name}, which have taken {box.taken} messages ({share})")
    words = f"workers of {box.name}: {box.taken} messages taken, {box.waiting} wait"
    if box.waiting:
        words += f", the oldest for {clock(box.oldest)}"
    return Bottleneck("queue", f"{words} ({share}); start more: {remedy(box.name, situation.attended)}")


def _work(situation: Situation, most: str, share: str) -> Bottleneck:
    """Return the work that takes most of the time: a model's, a tool's, a verifier's."""
    activity = situation.workforce.activity
    working = [work for kind, work in activity.working.items() if stage(kind) == most]
    ended = [times for kind, times in activity.ended.items() if stage(kind) == most]
    role = "model:" if most == "model" else "resource:"
    boxes = [box for box in situation.mailboxes.values() if box.name.startswith(role)]
    name = max(boxes, key=lambda box: box.taken).name if boxes else most
    what = {"model": name, "tool": f"the tools of {name}", "verify": f"the verifier of {name}"}[most]
    calls, done = sum(work.calls for work in working), sum(times.calls for times in ended)
    words = f"{what}: {calls} calls in work"
    if calls:
        words += f", the oldest for {clock(max(work.oldest for work in working))}"
    words += f", {done or 'none'} answered in the last minute"
    if done:
        words += f" after {sum(times.worked for times in ended) / done:.1f} s each"
    return Bottleneck(most, f"{words} ({share})")
