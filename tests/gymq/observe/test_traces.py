"""Traces: the variables that turn them on, what is said when a package is missing, and spans as the SDK has them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gymq.errors import Fault
from gymq.observe import traces
from gymq.observe.events import RolloutFinished, StepCommitted
from gymq.observe.span_exporter import RolloutSpans
from gymq.observe.spans import SpanFacts
from gymq.wire.calls import Usage
from gymq.wire.record import CallRecord

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environment", "switch"),
    [
        ({}, ""),
        (ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER"),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, ""),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
    ],
)
def test_the_standard_variables_turn_traces_on(environment, switch):
    assert traces.switch(environment) == switch


@pytest.mark.parametrize(
    ("environment", "installed", "line"),
    [
        ({}, [], ""),
        (ENDPOINT, ["otlp_proto_http"], ""),
        (
            ENDPOINT,
            [],
            "no traces: OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry's exporter otlp_proto_http is not installed; "
            "`pip install 'gymq[otel]'`, or unset it",
        ),
        (
            ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            ["otlp_proto_http"],
            "no traces: OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry's exporter otlp_proto_grpc is not installed; "
            "`pip install opentelemetry-exporter-otlp-proto-grpc`, or unset it",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            ["otlp_proto_http"],
            "no traces: OTEL_TRACES_EXPORTER is set, and OpenTelemetry's exporter zipkin is not installed; "
            "install its package, or unset it",
        ),
    ],
)
def test_what_is_missing_is_named_in_one_line(monkeypatch, environment, installed, line):
    points = [traces.metadata.EntryPoint(name, "os:path", "opentelemetry_traces_exporter") for name in installed]
    monkeypatch.setattr(traces.metadata, "entry_points", lambda group: points)
    assert traces.missing(environment) == line


def facts(trace: int = 7, **changes: object) -> SpanFacts:
    """A call's span."""
    fields: dict = {"span": 9, "parent": 8, "role": "model", "name": "chat m", "start": 1.5, "end": 2.5, "attributes": {"a": 1}}
    return SpanFacts(trace, **(fields | changes))


@pytest.fixture
def make(monkeypatch):
    """Makes the maker of spans, and what it exports to, in an environment of its own."""
    for name in ("OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"):
        monkeypatch.delenv(name, raising=False)

    def made(**variables: str) -> tuple[RolloutSpans, InMemorySpanExporter]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        exporter = InMemorySpanExporter()
        return RolloutSpans([exporter]), exporter

    return made


def test_spans_have_the_given_ids_and_times_and_the_service_of_their_role(make):
    maker, exporter = make()
    maker.add(facts(begun=2.0, client=True, fault=Fault("timeout", "late")))
    maker.add(facts(span=8, parent=0, role="agent", name="invoke_agent tool"))
    maker.flush()
    call, root = exporter.get_finished_spans()
    assert (call.context.trace_id, call.context.span_id, call.parent.span_id) == (7, 9, 8)
    assert (root.context.trace_id, root.context.span_id, root.parent) == (7, 8, None)
    assert (call.start_time, call.end_time, call.events[0].timestamp) == (1_500_000_000, 2_500_000_000, 2_000_000_000)
    assert (call.kind, root.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    assert (call.status.status_code, call.status.description) == (StatusCode.ERROR, "late")
    assert dict(call.attributes) == {"a": 1, "error.type": "timeout"}
    assert [span.resource.attributes["service.name"] for span in (call, root)] == ["gymq-model", "gymq-agent"]


def test_a_name_of_the_environment_s_own_is_that_of_all(make):
    maker, exporter = make(OTEL_SERVICE_NAME="mine")
    maker.add(facts())
    maker.flush()
    (span,) = exporter.get_finished_spans()
    assert span.resource.attributes["service.name"] == "mine"


def test_of_a_trace_all_spans_are_sampled_or_none(make):
    # Given two processes with the same sampler, of which one takes in the replies and the other ends the rollouts
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    (one, calls), (other, rollouts) = make(**sampler), make(**sampler)
    call = CallRecord("1.0", "generate", 1.0, 2.0, 3.0, "model-h-1-a")
    for row in range(64):
        place = (f"r.{row}.0", "r", "dice")
        one.step_committed(StepCommitted("a", *place, 1, [call], 3.0, "m", 7.0))
        other.rollout_finished(RolloutFinished(*place, "completed", "", "", 1.0, "", 1, 0, Usage(), 1.0, 3.0, "tool", "m", 7.0))
    one.flush()
    other.flush()
    traced = [span.context.trace_id for span in calls.get_finished_spans()]
    assert 0 < len(traced) < 64
    assert [span.context.trace_id for span in rollouts.get_finished_spans()] == traced
