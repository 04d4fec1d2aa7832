"""The recorder of activity: events of the last minute, and of no longer."""

from __future__ import annotations

import pytest

from gymq.observe import events
from gymq.observe.activity import SLICE, ActivityRecorder
from gymq.wire.activity import WINDOW, Activity, CallTimes, InWork
from gymq.wire.record import CallRecord, RecordedFault


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(clock: Clock) -> ActivityRecorder:
    return ActivityRecorder(clock)


def step(*calls: CallRecord) -> events.StepCommitted:
    """A step that took in the replies of calls."""
    return events.StepCommitted("a", "r.0.0", "r", "dice", 1, list(calls), 0.0, "openai:qwen", 0.0)


def test_calls_are_counted_by_kind_for_a_minute(clock, recorder):
    fault = RecordedFault("model", "no")
    recorder.step_committed(
        step(CallRecord("0.0", "generate", 1.0, 3.0, 10.0, "m", waited=4.0), CallRecord("0.1", "tool", 1, 2, 3, "t"))
    )
    clock.now += SLICE
    recorder.step_committed(step(CallRecord("0.0", "generate", 2.0, 1.9, 2.9, "m", fault=fault)))
    first = {"generate": CallTimes(2, 1, 2.0, 4.0, 4.0), "tool": CallTimes(1, 0, 1.0, 0.0, 1.0)}
    assert recorder.activity({}) == Activity(first, fault="generate: model: no")
    clock.now += WINDOW - SLICE + 0.1
    assert recorder.activity({"tool": InWork(1, 2, 3)}) == Activity(
        {"generate": CallTimes(1, 1, 0.0, 0.0, 1.0)}, {"tool": InWork(1, 2, 3)}, fault="generate: model: no"
    )
    clock.now += WINDOW
    assert recorder.activity({}) == Activity()


def test_seconds_are_published_as_milliseconds(recorder):
    recorder.step_committed(step(CallRecord("0.0", "tool", 1.0, 1.00049, 2.12345678, "t", waited=0.1234567)))
    told = recorder.activity({"tool": InWork(1, 1.23456789, 1.23456789)})
    assert told == Activity({"tool": CallTimes(1, 0, 0.0, 0.123, 1.0)}, {"tool": InWork(1, 1.235, 1.235)})


def test_requests_that_failed_are_counted_and_the_newest_is_named(recorder):
    for status in (200, 400, 429, 429, 503, 0):
        recorder.model_requested(events.ModelRequested("h:1", status, 0.1))
    recorder.call_retried(events.CallRetried("r.0.0", "generate", "model_unavailable"))
    assert recorder.activity({}) == Activity(refused=2, errors=2, resent=1, fault="no usable answer from h:1")


def test_a_recorder_hears_what_its_process_emits(recorder):
    recorder.subscribe()
    try:
        events.emit(events.ModelRequested("h:1", 429, 0.1))
    finally:
        for method in (recorder.step_committed, recorder.call_retried, recorder.model_requested):
            events.unsubscribe(method)
    assert recorder.activity({}).refused == 1
