"""The log line of each event that an operator wants to know of: its level and its words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gymq.observe import events

#: A level, and a function from the event to the line.
Line = tuple[int, Callable[[Any], str]]


def _ready(event: events.WorkerReady) -> str:
    return f"ready: serves {', '.join(event.serves)} at {event.server}"


def _draining(event: events.Draining) -> str:
    return f"draining: takes no more mail, finishes {event.held} messages"


def _left(event: events.WorkerLeft) -> str:
    rest = f", handed back {event.handed_back} messages" if event.handed_back else ""
    return f"left{rest}{f': {event.reason}' if event.reason else ''}"


def _lapsed(event: events.Lapsed) -> str:
    return (
        f"its lease lapsed: it was silent for {event.limit:g} s and was declared dead; {event.dropped} messages that it held "
        "are others' now"
    )


def _handed_back(event: events.HandedBack) -> str:
    return f"{event.dead} is dead: {event.messages} messages of it were handed back"


def _outage_began(event: events.OutageBegan) -> str:
    return f"outage of shard {event.shard} began: {event.server}: {event.reason}"


def _outage_ended(event: events.OutageEnded) -> str:
    return f"outage of shard {event.shard} ended after {event.seconds:.1f} s: {event.server} answers"


def _refused(event: events.MailRefused) -> str:
    return f"mail {event.mail} {event.reason}"


def _parked(event: events.MailParked) -> str:
    return f"mail of a newer schema ({event.schema}; this worker reads up to {event.readable}) waits; start newer workers"


def _quarantine_started(event: events.QuarantineStarted) -> str:
    return f"mail that two deaths had in common waits: a {event.role} quarantine runs it one at a time"


def _quarantine_ended(event: events.QuarantineEnded) -> str:
    return f"the {event.role} quarantine ended: {event.how} after {event.seconds:.1f} s"


def _dead_letter(event: events.DeadLettered) -> str:
    what = f"{event.kind} of {event.name}" if event.name else f"a step of {event.rollout}"
    return f"dead letter: {what} killed its {event.role} process; `gymq dead show {event.id}` has more"


def _limit(event: events.LimitInForce) -> str:
    unit = "tokens" if event.limit == "tokens" else "requests"
    source = "learned from refusals" if event.limit == "learned" else "stated"
    return f"rate limit in force at {event.endpoint}: {event.rate:.3g} {unit}/s ({source}); {event.waiting} requests wait"


def _lifted(event: events.LimitLifted) -> str:
    return f"rate limit lifted at {event.endpoint} ({event.limit})"


def _loading_model(event: events.ModelLoading) -> str:
    return f"loading model {event.model}"


def _loading_weights(event: events.WeightsLoading) -> str:
    return f"weights: loading version {event.version} of {event.model} ({event.mode})"


def _loaded_weights(event: events.WeightsLoaded) -> str:
    return f"weights: version {event.version} of {event.model} loaded in {event.seconds:.1f} s"


def _failed_weights(event: events.WeightsFailed) -> str:
    return f"weights: version {event.version} of {event.model} cannot be loaded: {event.reason}; this worker leaves"


_LINES: dict[type[events.Event], Line] = {
    events.WorkerReady: (logging.INFO, _ready),
    events.Draining: (logging.INFO, _draining),
    events.WorkerLeft: (logging.INFO, _left),
    events.Lapsed: (logging.WARNING, _lapsed),
    events.HandedBack: (logging.WARNING, _handed_back),
    events.OutageBegan: (logging.WARNING, _outage_began),
    events.OutageEnded: (logging.WARNING, _outage_ended),
    events.MailRefused: (logging.WARNING, _refused),
    events.MailParked: (logging.WARNING, _parked),
    events.QuarantineStarted: (logging.WARNING, _quarantine_started),
    events.QuarantineEnded: (logging.WARNING, _quarantine_ended),
    events.DeadLettered: (logging.ERROR, _dead_letter),
    events.LimitInForce: (logging.INFO, _limit),
    events.LimitLifted: (logging.INFO, _lifted),
    events.ModelLoading: (logging.INFO, _loading_model),
    events.WeightsLoading: (logging.INFO, _loading_weights),
    events.WeightsLoaded: (logging.INFO, _loaded_weights),
    events.WeightsFailed: (logging.ERROR, _failed_weights),
}


def line_of(kind: type[events.Event]) -> Line | None:
    """Return how events of a kind are told; None: they are too many, or say nothing to a person."""
    return _LINES.get(kind)
