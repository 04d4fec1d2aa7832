"""The spans of a rollout's trace: ids that anybody can make again, and names of OpenTelemetry's conventions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from gymq.errors import Fault
from gymq.observe import spans
from gymq.observe.events import RolloutFinished, StepCommitted
from gymq.observe.spans import call_span, rollout_span, span_id, trace_id
from gymq.wire.calls import Usage
from gymq.wire.record import CallRecord, RecordedFault

BORN = 1764358000.25
ROLLOUT = "r.3.1"

FINISHED = {
    "rollout": ROLLOUT,
    "run": "r",
    "environment": "dice",
    "model": "openai:qwen",
    "status": "completed",
    "stop": "",
    "fault": "",
    "reward": 0.5,
    "no_reward": "",
    "turns": 2,
    "tool_calls": 1,
    "usage": Usage(30, 12, 20),
    "started_at": 10.0,
    "finished_at": 20.0,
    "born": BORN,
    "agent": "tool",
}


def finished(**changes: object) -> RolloutFinished:
    """The end of a rollout."""
    return RolloutFinished(**(FINISHED | changes))


def step(*calls: CallRecord, born: float = BORN) -> StepCommitted:
    """A step that took in the replies of calls."""
    return StepCommitted("agent-h-1-aa", ROLLOUT, "r", "dice", 4, list(calls), 0.0, "openai:qwen", born)


def test_ids_follow_from_the_rollout_the_call_and_the_life_of_the_run():
    call = CallRecord("4.0", "tool", 1.0, 2.0, 3.0, "resource-h-7-ab", "roll")
    found, root = call_span(step(call), call), rollout_span(finished())
    assert (found.trace, found.parent) == (root.trace, root.span)
    assert (found.trace, found.span) == (trace_id(ROLLOUT, BORN), span_id(f"{ROLLOUT}:4:0", BORN))
    assert root.parent == 0
    other = call_span(step(call, born=BORN + 1), call)
    assert len({found.trace, other.trace, found.span, other.span, found.parent, other.parent}) == 6
    assert found.trace < 2**128
    assert found.span < 2**64


def test_a_call_s_time_is_split_into_queue_limit_and_work():
    call = CallRecord("4.1", "generate", 1.0, 3.0, 10.0, "model-some-host-7-ab", attempt=2, waited=4.0, finish="stop")
    call.input_tokens, call.output_tokens, call.cached_tokens = 30, 12, 20
    found = call_span(step(call), call)
    assert (found.start, found.begun, found.end) == (1.0, 3.0, 10.0)
    assert (found.name, found.role, found.client) == ("chat openai:qwen", "model", True)
    assert found.attributes == {
        "gen_ai.conversation.id": ROLLOUT,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "openai:qwen",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.cache_read.input_tokens": 20,
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.output_tokens": 12,
        "gymq.attempt": 2,
        "gymq.call": f"{ROLLOUT}:4:1",
        "gymq.environment": "dice",
        "gymq.kind": "generate",
        "gymq.limit_seconds": 4.0,
        "gymq.queue_seconds": 2.0,
        "gymq.run": "r",
        "gymq.work_seconds": 3.0,
        "gymq.worker": "model-some-host-7-ab",
    }


@pytest.mark.parametrize(
    ("kind", "name", "span"),
    [("tool", "roll", "execute_tool roll"), ("verify", None, "verify dice"), ("ask", "openai:judge", "chat openai:judge")],
)
def test_a_span_is_named_by_what_was_called(kind, name, span):
    call = CallRecord("4.1", kind, 1.0, 3.0, 2.0, "resource-h-7-ab", name, fault=RecordedFault("timeout", "late"))
    found = call_span(step(call), call)
    assert found.name == span
    assert found.fault == Fault("timeout", "late")
    assert found.attributes["gymq.work_seconds"] == 0.0  # clocks of two machines differ


def test_a_rollout_that_failed_says_why():
    found = rollout_span(finished(status="failed", fault="model: HTTP 400: no", reward=None, no_reward="", stop="x"))
    assert found.fault == Fault("model", "HTTP 400: no")
    assert "gymq.reward" not in found.attributes
    assert found.attributes["gymq.stop"] == "x"
    assert rollout_span(finished()).fault is None


def test_names_of_generative_ai_are_those_of_the_conventions():
    used = set(re.findall(r'"(gen_ai\.[\w.]+)"', Path(spans.__file__).read_text()))
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    assert used
    assert used <= known
