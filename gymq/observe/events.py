"""Events: one struct for each thing that happens in a process of gymq; logs, metrics and traces are made of them.

Code that does something emits one event. Logs, metrics and traces subscribe to the kinds that they tell of; a kind that has
no subscriber costs the making of its struct. An event happens in one process: two processes never emit the same one.
Times are seconds since the epoch, durations are seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from gymq.wire.calls import Call, Reply, Usage
from gymq.wire.record import CallRecord

log = logging.getLogger(__name__)


class Event(msgspec.Struct, frozen=True, gc=False):
    """Base of all events."""


# The life of a worker.


class WorkerReady(Event, frozen=True, gc=False):
    """A worker stands in the registry and takes mail.

    Args:
        role: its role.
        worker: its name in Redis; after a lapse it is ready again under a new one.
        serves: the mailboxes that it reads; of an executor its queue.
        server: the shard's address without password.
    """

    role: str
    worker: str
    serves: list[str]
    server: str


class Draining(Event, frozen=True, gc=False):
    """A worker takes no more mail.

    Args:
        role: its role.
        worker: its name.
        held: messages that it holds and finishes.
    """

    role: str
    worker: str
    held: int


class WorkerLeft(Event, frozen=True, gc=False):
    """A worker has left the registry; what it still held was handed back.

    Args:
        role: its role.
        worker: its name.
        handed_back: messages that it had not finished.
        reason: the error that ended it; empty: it was drained or stopped.
    """

    role: str
    worker: str
    handed_back: int
    reason: str = ""


class Lapsed(Event, frozen=True, gc=False):
    """A worker's lease has lapsed: it was declared dead, and its mail belongs to others.

    Args:
        role: its role.
        worker: the name that died.
        limit: the liveness limit, seconds.
        dropped: messages that it held.
    """

    role: str
    worker: str
    limit: float
    dropped: int


class HandedBack(Event, frozen=True, gc=False):
    """A worker has handed back a dead worker's mail.

    Args:
        dead: the dead worker's name.
        role: the dead worker's role; empty: its entry in the registry could not be read, or it had none.
        messages: how many.
    """

    dead: str
    role: str
    messages: int


# Redis.


class OutageBegan(Event, frozen=True, gc=False):
    """A shard cannot be reached, or cannot serve; told once, whatever number of connections it breaks.

    Args:
        shard: its number.
        server: its address without password.
        reason: one line.
    """

    shard: int
    server: str
    reason: str


class OutageEnded(Event, frozen=True, gc=False):
    """A shard has answered again.

    Args:
        shard: its number.
        server: its address without password.
        seconds: how long it was away.
    """

    shard: int
    server: str
    seconds: float


# Mail.


class MailTaken(Event, frozen=True, gc=False):
    """A batch of mail was taken.

    Args:
        role: of the worker.
        messages: how many.
        redelivered: those of them that were handed back before.
    """

    role: str
    messages: int
    redelivered: int


class MailRefused(Event, frozen=True, gc=False):
    """Mail was acknowledged unread: no worker of gymq can have written it.

    Args:
        role: of the worker.
        mail: its id and stream: `ID in STREAM`.
        reason: one line, which goes on after the mail: `is no call: ...`.
    """

    role: str
    mail: str
    reason: str


class MailParked(Event, frozen=True, gc=False):
    """Mail of a newer schema was put aside for newer workers; told once in a process.

    Args:
        role: of the worker.
        schema: the newest schema among it.
        readable: the newest schema that this worker reads.
    """

    role: str
    schema: int
    readable: int


class QuarantineStarted(Event, frozen=True, gc=False):
    """A child was started that runs suspects one at a time.

    Args:
        role: whose suspects.
    """

    role: str


class QuarantineEnded(Event, frozen=True, gc=False):
    """A quarantine has ended.

    Args:
        role: whose suspects.
        how: its exit code or signal, in words.
        seconds: how long it lived.
    """

    role: str
    how: str
    seconds: float


class DeadLettered(Event, frozen=True, gc=False):
    """Mail became a dead letter.

    Args:
        id: the letter's, for `gymq dead show`.
        role: whose processes died.
        rollout: the rollout's id.
        kind: the call's kind; `act`: a step of an agent.
        name: the tool, the environment of a hook, the model's SPEC or the agent.
        deaths: how many workers died with it in hand.
    """

    id: str
    role: str
    rollout: str
    kind: str
    name: str
    deaths: int


# Work.


class CallFinished(Event, frozen=True, gc=False):
    """A worker's reply to a call has been merged into its rollout, or has come too late.

    Args:
        role: of the worker: `model`, `resource` or `executor`.
        worker: its name.
        rollout: the rollout's id.
        step: the rollout's step that sent the call.
        n: the call's number within the step.
        run: the run's name.
        environment: the environment's name.
        kind: the call's kind.
        name: of `tool`: the tool's name.
        queued: when it was sent.
        started: when work on it began.
        finished: when it ended.
        waited: seconds of the work in which it only waited, for a rate limit or for weights.
        outcome: `ok`, the fault's kind, or `stale`: it had been answered before, or its rollout has gone on.
        attempt: how many workers died with it in hand.
        usage: of a model's answer: its tokens.
    """

    role: str
    worker: str
    rollout: str
    step: int
    n: int
    run: str
    environment: str
    kind: str
    name: str
    queued: float
    started: float
    finished: float
    waited: float
    outcome: str
    attempt: int = 0
    usage: Usage | None = None

    @classmethod
    def of(cls, role: str, call: Call, reply: Reply, merged: bool, usage: Usage | None = None) -> CallFinished:
        """Return the event of a reply.

        Args:
            role: of the worker.
            call: the call.
            reply: its reply.
            merged: whether it was merged; False: it came too late.
            usage: of a model's answer: its tokens.
        """
        return cls(
            role, reply.worker, call.place, call.step, call.n, call.run, call.environment, call.kind, call.name, call.queued,
            reply.started, reply.finished, reply.waited, outcome(reply, merged), reply.attempt, usage,
        )  # fmt: skip


class StepCommitted(Event, frozen=True, gc=False):
    """An agent worker has committed a step of a rollout: each applied step of a rollout makes one of these, in order.

    Args:
        worker: the agent worker's name.
        rollout: the rollout's id.
        run: the run's name.
        environment: the environment's name.
        version: the rollout's version before it; 0: the step that began the rollout.
        calls: the calls whose replies it took in, as they stand in the rollout's record; empty: none, as in the first step.
        at: when it was committed.
        model: the run's model SPEC.
        born: when the run was created; tells it from a removed run of the same name.
    """

    worker: str
    rollout: str
    run: str
    environment: str
    version: int
    calls: list[CallRecord]
    at: float
    model: str
    born: float


class RolloutFinished(Event, frozen=True, gc=False):
    """A rollout has ended, by the step that was committed with it.

    Args:
        rollout: its id.
        run: the run's name.
        environment: the environment's name.
        status: `completed`, `truncated`, `failed` or `cancelled`.
        stop: why it was truncated; else empty.
        fault: of `failed` and `cancelled`: the fault's kind and message; else empty.
        reward: the verifier's; None: there is none.
        no_reward: why there is none; empty: there is one, or the verifier was not asked.
        turns: answers of the model.
        tool_calls: tool calls.
        usage: tokens of all answers.
        started_at: when its first step ran.
        finished_at: when its last step ran.
        agent: the agent's name.
        model: the run's model SPEC.
        born: when the run was created; tells it from a removed run of the same name.
    """

    rollout: str
    run: str
    environment: str
    status: str
    stop: str
    fault: str
    reward: float | None
    no_reward: str
    turns: int
    tool_calls: int
    usage: Usage
    started_at: float
    finished_at: float
    agent: str
    model: str
    born: float


class StepRejected(Event, frozen=True, gc=False):
    """A step was not applied.

    Args:
        rollout: the rollout's id.
        why: `stale`: its mail was of an older version; `conflict`: another worker had committed, and it is decided again.
    """

    rollout: str
    why: str


class Admitted(Event, frozen=True, gc=False):
    """Rollouts were started.

    Args:
        rollouts: how many, of all runs.
    """

    rollouts: int


class CallRetried(Event, frozen=True, gc=False):
    """A rollout will send a call again after a fault.

    Args:
        rollout: the rollout's id.
        kind: the call's kind.
        fault: the fault's kind.
    """

    rollout: str
    kind: str
    fault: str


# Models.


class ModelRequested(Event, frozen=True, gc=False):
    """A request to a model server has ended; a call may take several.

    Args:
        endpoint: the server's address without user, password and query.
        status: the HTTP status; 0: there was no answer, or none that can be read.
        seconds: how long it took.
        retry_after: seconds that the server asked to wait; 0: it asked for none.
    """

    endpoint: str
    status: int
    seconds: float
    retry_after: float = 0.0


class LimitInForce(Event, frozen=True, gc=False):
    """A rate limit makes calls wait, or what it grants has changed much; told at most every few seconds.

    Args:
        endpoint: the server's address, or the model.
        limit: `requests`, `tokens`, or `learned`: found from refusals.
        rate: what it grants, per second.
        waiting: requests of this process that wait for it.
    """

    endpoint: str
    limit: str
    rate: float
    waiting: int


class LimitLifted(Event, frozen=True, gc=False):
    """A learned rate limit is no longer in force.

    Args:
        endpoint: the server's address, or the model.
        limit: as in `LimitInForce`.
    """

    endpoint: str
    limit: str


class ModelLoading(Event, frozen=True, gc=False):
    """A model worker loads its model; it takes no mail before `WorkerReady`.

    Args:
        model: the SPEC.
    """

    model: str


class WeightsLoading(Event, frozen=True, gc=False):
    """A model worker begins to load other weights.

    Args:
        model: the SPEC.
        version: the policy version.
        mode: what becomes of calls in flight: `keep`, `wait` or `abort`.
    """

    model: str
    version: int
    mode: str


class WeightsLoaded(Event, frozen=True, gc=False):
    """A model worker samples with other weights.

    Args:
        model: the SPEC.
        version: the policy version.
        seconds: from the word to the end of the update.
    """

    model: str
    version: int
    seconds: float


class WeightsFailed(Event, frozen=True, gc=False):
    """A model worker could not load weights, and leaves.

    Args:
        model: the SPEC.
        version: the policy version.
        reason: one line.
    """

    model: str
    version: int
    reason: str


# Sinks.


class RolloutsStored(Event, frozen=True, gc=False):
    """A sink has made rollouts durable and acknowledged them.

    Args:
        run: the run's name.
        rollouts: how many.
        seconds: of the commit.
    """

    run: str
    rollouts: int
    seconds: float


def outcome(reply: Reply, merged: bool) -> str:
    """Return the outcome of a call as `CallFinished` has it.

    Args:
        reply: its reply.
        merged: whether it was merged.
    """
    return "stale" if not merged else "ok" if reply.fault is None else reply.fault.kind


E = TypeVar("E", bound=Event)

_subscribers: dict[type[Event], tuple[Callable[[Any], None], ...]] = {}


def subscribe(kind: type[E], subscriber: Callable[[E], None]) -> None:
    """Have a function called with each event of a kind, in the thread that emits it.

    Args:
        kind: the event's class.
        subscriber: the function; it must be quick, and may be called from several threads.
    """
    _subscribers[kind] = (*_subscribers.get(kind, ()), subscriber)


def unsubscribe(subscriber: Callable[[Any], None]) -> None:
    """Call a function no more, whatever kinds it was subscribed to."""
    for kind, subscribers in list(_subscribers.items()):
        # Bound methods are made anew at each access: equal, not identical.
        _subscribers[kind] = tuple(one for one in subscribers if one != subscriber)


def wanted(kind: type[Event]) -> bool:
    """Return whether events of a kind have a subscriber: what is costly to gather need not be gathered for none."""
    return bool(_subscribers.get(kind))


def emit(event: Event) -> None:
    """Hand an event to its subscribers; what a subscriber raises is logged and goes no further."""
    for subscriber in _subscribers.get(type(event), ()):
        try:
            subscriber(event)
        except Exception:
            log.exception("a subscriber to %s failed", type(event).__name__)
