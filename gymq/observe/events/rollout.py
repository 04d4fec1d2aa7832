"""Events of calls, steps and rollouts."""

from __future__ import annotations

from gymq.observe.events.event import Event
from gymq.wire.calls import Call, Reply, Usage
from gymq.wire.record import CallRecord


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


def outcome(reply: Reply, merged: bool) -> str:
    """Return the outcome of a call as `CallFinished` has it.

    Args:
        reply: its reply.
        merged: whether it was merged.
    """
    return "stale" if not merged else "ok" if reply.fault is None else reply.fault.kind
