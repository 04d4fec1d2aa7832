"""Traces: the variables that turn them on, what is said when a package is missing, and spans as the SDK has them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gymq.errors import Fault
from gymq.observe import traces
from gymq.observe.span_exporter import RolloutSpans
from gymq.observe.spans import SpanFacts

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environment", "switch"),
    [
        ({}, ""),
        (ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER=console"),
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


def made(monkeypatch: pytest.MonkeyPatch, *spans: SpanFacts, **variables: str):
    """The spans that the SDK exports."""
    for name in ("OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    exporter = InMemorySpanExporter()
    maker = RolloutSpans([exporter])
    for span in spans:
        maker.add(span)
    maker.flush()
    return exporter.get_finished_spans()


def test_spans_have_the_given_ids_and_times_and_the_service_of_their_role(monkeypatch):
    call, root = made(
        monkeypatch,
        facts(begun=2.0, client=True, fault=Fault("timeout", "late")),
        facts(span=8, parent=0, role="agent", name="invoke_agent tool"),
    )
    assert (call.context.trace_id, call.context.span_id, call.parent.span_id) == (7, 9, 8)
    assert (root.context.trace_id, root.context.span_id, root.parent) == (7, 8, None)
    assert (call.start_time, call.end_time, call.events[0].timestamp) == (1_500_000_000, 2_500_000_000, 2_000_000_000)
    assert (call.kind, root.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    assert (call.status.status_code, call.status.description) == (StatusCode.ERROR, "late")
    assert dict(call.attributes) == {"a": 1, "error.type": "timeout"}
    assert [span.resource.attributes["service.name"] for span in (call, root)] == ["gymq-model", "gymq-agent"]


def test_a_name_of_the_environment_s_own_is_that_of_all(monkeypatch):
    (span,) = made(monkeypatch, facts(), OTEL_SERVICE_NAME="mine")
    assert span.resource.attributes["service.name"] == "mine"


def test_of_a_trace_all_spans_are_sampled_or_none(monkeypatch):
    ids = [n * 2**58 for n in range(64)]
    spans = [facts(trace=trace + 1, **more) for trace in ids for more in ({}, {"span": 8, "parent": 0, "role": "agent"})]
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    found = made(monkeypatch, *spans, **sampler)
    traced = [span.context.trace_id for span in found]
    assert 0 < len(set(traced)) < 64
    assert all(traced.count(trace) == 2 for trace in traced)
