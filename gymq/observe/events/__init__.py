"""Events: one struct for each thing that happens in a process of gymq; logs, metrics and traces are made of them.

Code that does something emits one event. Logs, metrics and traces subscribe to the kinds that they tell of; a kind that has
no subscriber costs the making of its struct. An event happens in one process: two processes never emit the same one.
Times are seconds since the epoch, durations are seconds.
"""

from __future__ import annotations

from gymq.observe.events.event import Event, emit, subscribe, unsubscribe, wanted
from gymq.observe.events.mail import DeadLettered, MailParked, MailRefused, MailTaken, QuarantineEnded, QuarantineStarted
from gymq.observe.events.model import (
    LimitInForce,
    LimitLifted,
    ModelLoading,
    ModelRequested,
    WeightsFailed,
    WeightsLoaded,
    WeightsLoading,
)
from gymq.observe.events.outage import OutageBegan, OutageEnded
from gymq.observe.events.rollout import (
    Admitted,
    CallFinished,
    CallRetried,
    RolloutFinished,
    StepCommitted,
    StepRejected,
    outcome,
)
from gymq.observe.events.sink import RolloutsStored
from gymq.observe.events.worker import Draining, HandedBack, Lapsed, WorkerLeft, WorkerReady

__all__ = [
    "Admitted",
    "CallFinished",
    "CallRetried",
    "DeadLettered",
    "Draining",
    "Event",
    "HandedBack",
    "Lapsed",
    "LimitInForce",
    "LimitLifted",
    "MailParked",
    "MailRefused",
    "MailTaken",
    "ModelLoading",
    "ModelRequested",
    "OutageBegan",
    "OutageEnded",
    "QuarantineEnded",
    "QuarantineStarted",
    "RolloutFinished",
    "RolloutsStored",
    "StepCommitted",
    "StepRejected",
    "WeightsFailed",
    "WeightsLoaded",
    "WeightsLoading",
    "WorkerLeft",
    "WorkerReady",
    "emit",
    "outcome",
    "subscribe",
    "unsubscribe",
    "wanted",
]
