"""The spans of rollouts, given to OpenTelemetry's SDK, which samples, batches and exports them as `OTEL_*` variables say.

Imported only where traces are wanted: it needs the extra `gymq[otel]`.
"""

from __future__ import annotations

import threading

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from gymq.observe import events
from gymq.observe.spans import SpanFacts, call_span, rollout_span, trace_id


class RolloutSpans:
    """Makes spans of the events of this process, one at a time.

    Args:
        exporters: where they go.
    """

    def __init__(self, exporters: list[SpanExporter]) -> None:
        self._ids = _GivenIds()
        self._processors = [BatchSpanProcessor(exporter) for exporter in exporters]
        self._providers: dict[str, TracerProvider] = {}
        self._lock = threading.Lock()

    def subscribe(self) -> None:
        """Make spans from now on."""
        events.subscribe(events.StepCommitted, self.step_committed)
        events.subscribe(events.RolloutFinished, self.rollout_finished)

    def step_committed(self, event: events.StepCommitted) -> None:
        """Make a span for each call whose reply a step took in."""
        if event.calls and self._sampled(trace_id(event.rollout, event.born)):
            for call in event.calls:
                self.add(call_span(event, call))

    def rollout_finished(self, event: events.RolloutFinished) -> None:
        """Make the span of a whole rollout."""
        if self._sampled(trace_id(event.rollout, event.born)):
            self.add(rollout_span(event))

    def add(self, facts: SpanFacts) -> None:
        """Give a span of a trace that is sampled to the SDK."""
        with self._lock:
            tracer = self._provider(facts.role).get_tracer("gymq")
            parent = None
            if facts.parent:
                above = SpanContext(facts.trace, facts.parent, True, TraceFlags(TraceFlags.SAMPLED))
                parent = set_span_in_context(NonRecordingSpan(above))
            self._ids.trace, self._ids.span = facts.trace, facts.span
            kind = SpanKind.CLIENT if facts.client else SpanKind.INTERNAL
            span = tracer.start_span(facts.name, parent, kind, facts.attributes, start_time=_nanoseconds(facts.start))
        if facts.begun:
            span.add_event("begun", timestamp=_nanoseconds(facts.begun))
        if facts.fault is not None:
            span.set_attribute("error.type", facts.fault.kind)
            span.set_status(Status(StatusCode.ERROR, facts.fault.message))
        span.end(_nanoseconds(facts.end))

    def flush(self) -> None:
        """Export what is not exported yet; blocks on the network."""
        for processor in self._processors:
            processor.force_flush()

    def _sampled(self, trace: int) -> bool:
        """Return the sampler's decision on a trace's first span, wherever that is made: it is that of all its spans."""
        return self._provider("agent").sampler.should_sample(None, trace, "").decision is Decision.RECORD_AND_SAMPLE

    def _provider(self, role: str) -> TracerProvider:
        """Return the provider of a service: the workers of a role are one, unless the environment names another."""
        found = self._providers.get(role)
        if found is None:
            resource = Resource.create()
            if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
                resource = resource.merge(Resource({SERVICE_NAME: f"gymq-{role}"}))
            found = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
            for processor in self._processors:
                found.add_span_processor(processor)
            self._providers[role] = found
        return found


class _GivenIds(IdGenerator):
    """The ids of the span that is made next."""

    trace = span = 1

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        return self.span


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
