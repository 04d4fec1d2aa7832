"""The spans of a rollout's trace, as facts: one for the rollout, one for each call; made of the agent workers' events.

Ids are digests of the rollout's and the call's ids, with the time at which the run was created, since a run may take the
name of one that was removed. Whoever knows a call knows its span, and no mail carries one.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from gymq.errors import Fault
from gymq.observe.events import RolloutFinished, StepCommitted
from gymq.wire.activity import stage
from gymq.wire.record import CallRecord

#: Bytes of a trace's id and of a span's, as OpenTelemetry has them.
_TRACE_BYTES, _SPAN_BYTES = 16, 8

Attributes = dict[str, str | float | list[str]]


class SpanFacts(msgspec.Struct):
    """A span that has ended. Times are seconds since the epoch.

    Args:
        trace: the trace's id.
        span: the span's id.
        parent: its parent's id; 0: it is the trace's first.
        role: the role of the worker that did the work.
        name: what a person reads.
        start: when it was begun; a call: when it was sent.
        end: when it ended.
        attributes: by name; those of OpenTelemetry's conventions for generative AI, and `gymq.*`.
        begun: of a call: when a worker began.
        client: it is a request to a model.
        fault: how it failed.
    """

    trace: int
    span: int
    parent: int
    role: str
    name: str
    start: float
    end: float
    attributes: Attributes
    begun: float = 0.0
    client: bool = False
    fault: Fault | None = None


def trace_id(rollout: str, born: float) -> int:
    """Return the id of a rollout's trace.

    Args:
        rollout: the rollout's id.
        born: when its run was created, seconds since the epoch.
    """
    return _digest(f"{rollout}@{born!r}", _TRACE_BYTES)


def span_id(of: str, born: float) -> int:
    """Return the id of a span.

    Args:
        of: the call's id, or that of the rollout.
        born: when its run was created, seconds since the epoch.
    """
    return _digest(f"{of}@{born!r}", _SPAN_BYTES)


def rollout_span(event: RolloutFinished) -> SpanFacts:
    """Return the span of a rollout, from its first step to its last."""
    attributes: Attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": event.agent,
        "gen_ai.conversation.id": event.rollout,
        "gen_ai.request.model": event.model,
        "gen_ai.usage.input_tokens": event.usage.input_tokens,
        "gen_ai.usage.output_tokens": event.usage.output_tokens,
        "gymq.run": event.run,
        "gymq.environment": event.environment,
        "gymq.status": event.status,
        "gymq.turns": event.turns,
        "gymq.tool_calls": event.tool_calls,
    }
    attributes |= {name: text for name, text in (("gymq.stop", event.stop), ("gymq.no_reward", event.no_reward)) if text}
    if event.reward is not None:
        attributes["gymq.reward"] = event.reward
    kind, _, message = event.fault.partition(": ")
    return SpanFacts(
        trace_id(event.rollout, event.born), span_id(event.rollout, event.born), 0, "agent", f"invoke_agent {event.agent}",
        event.started_at, event.finished_at, attributes, fault=Fault(kind, message) if event.status == "failed" else None,
    )  # fmt: skip


def call_span(event: StepCommitted, call: CallRecord) -> SpanFacts:
    """Return the span of a call, from when it was sent to its end.

    Args:
        event: the step that took its reply in.
        call: the call.
    """
    id = f"{event.rollout}:{call.call.replace('.', ':')}"
    attributes: Attributes = {
        "gen_ai.conversation.id": event.rollout,
        "gymq.run": event.run,
        "gymq.environment": event.environment,
        "gymq.call": id,
        "gymq.kind": call.kind,
        "gymq.worker": call.worker,
        "gymq.queue_seconds": max(0.0, call.started - call.queued),
        "gymq.limit_seconds": call.waited,
        "gymq.work_seconds": max(0.0, call.finished - call.started - call.waited),
    }
    if call.attempt:
        attributes["gymq.attempt"] = call.attempt
    client = stage(call.kind) == "model"
    if client:
        model = call.name or event.model
        name = f"chat {model}"
        attributes |= {"gen_ai.operation.name": "chat", "gen_ai.request.model": model}
        if call.input_tokens is not None:
            attributes["gen_ai.usage.input_tokens"] = call.input_tokens
            attributes["gen_ai.usage.output_tokens"] = call.output_tokens or 0
            attributes["gen_ai.usage.cache_read.input_tokens"] = call.cached_tokens
        if call.finish:
            attributes["gen_ai.response.finish_reasons"] = [call.finish]
    elif call.kind == "tool":
        name = f"execute_tool {call.name}"
        attributes |= {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": call.name or ""}
    else:
        name = f"{call.kind} {event.environment}"
    fault = None if call.fault is None else Fault(call.fault.kind, call.fault.message)
    role, end = call.worker.partition("-")[0], max(call.queued, call.finished)
    return SpanFacts(
        trace_id(event.rollout, event.born), span_id(id, event.born), span_id(event.rollout, event.born),
        role, name, call.queued, end, attributes, call.started, client, fault,
    )  # fmt: skip


def _digest(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest()) or 1  # 0 is no id
