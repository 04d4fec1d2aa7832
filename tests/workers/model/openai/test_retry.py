"""The retry policy, without a server, a clock or chance."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from gymq_workers.model.openai import retry
from gymq_workers.model.openai.retry import RetrySchedule, Transient, passes, retry_after
from hypothesis import given
from hypothesis import strategies as st

from gymq.errors import CallError


def test_waits_double_up_to_the_longest():
    retries = RetrySchedule(10, start=0.0)
    waits = [retries.wait(Transient("no"), now=0.0, chance=1.0) for _ in range(9)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_chance_spreads_a_wait_over_its_whole_length():
    assert RetrySchedule(1, start=0.0).wait(Transient("no"), now=0.0, chance=0.0) == 0.0
    assert RetrySchedule(1, start=0.0).wait(Transient("no"), now=0.0, chance=0.5) == 0.25


def test_the_number_of_tries_is_bounded():
    retries = RetrySchedule(2, start=0.0)
    retries.wait(Transient("no"), 0.0, 0.0)
    retries.wait(Transient("no"), 0.0, 0.0)
    with pytest.raises(CallError) as caught:
        retries.wait(Transient("HTTP 500 from host: no"), 0.0, 0.0)
    assert caught.value.fault.kind == "model_unavailable"
    assert caught.value.fault.message == "HTTP 500 from host: no (tried 3 times)"


def test_without_retries_the_first_failure_ends_the_call():
    with pytest.raises(CallError, match="tried once"):
        RetrySchedule(0, start=0.0).wait(Transient("no"), 0.0, 0.0)


def test_the_time_is_bounded():
    retries = RetrySchedule(1000, start=100.0)
    assert retries.wait(Transient("no"), now=100.0 + retry.RETRY_WINDOW - 1, chance=1.0) == 0.5
    with pytest.raises(CallError):
        retries.wait(Transient("no"), now=100.0 + retry.RETRY_WINDOW - 1, chance=1.0 + 1e-9 + 0.5)


def test_the_last_failure_names_the_fault():
    with pytest.raises(CallError) as caught:
        RetrySchedule(0, start=0.0).wait(Transient("too slow", kind="timeout"), 0.0, 0.0)
    assert caught.value.fault.kind == "timeout"


def test_a_server_is_not_asked_sooner_than_it_wants():
    assert RetrySchedule(3, start=0.0).wait(Transient("no", retry_after=7.0), 0.0, chance=1.0) == 7.5


def test_a_long_retry_after_is_capped():
    assert RetrySchedule(3, start=0.0).wait(Transient("no", retry_after=86400.0), 0.0, chance=0.0) == retry.MAX_RETRY_AFTER


@given(st.integers(0, 50), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1000), st.none() | st.floats(0, 1e6)), max_size=80))
def test_no_try_begins_after_the_budget(allowed, failures):
    retries, now = RetrySchedule(allowed, start=0.0), 0.0
    for chance, took, after in failures:
        now += took
        try:
            wait = retries.wait(Transient("no", after), now, chance)
        except CallError:
            break
        assert wait >= min(after or 0.0, retry.MAX_RETRY_AFTER)
        now += wait
        assert now <= retry.RETRY_WINDOW
    assert retries.tries <= allowed + 1


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 520, 529])
def test_these_statuses_pass(status):
    assert passes(status)


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422, 451])
def test_these_statuses_do_not_pass(status):
    assert not passes(status)


def test_retry_after_is_seconds_or_a_date():
    now = 1_700_000_000.0
    date = format_datetime(datetime.fromtimestamp(now + 30, UTC), usegmt=True)
    assert retry_after({}, now) is None
    assert retry_after({"Retry-After": "3"}, now) == 3.0
    assert retry_after({"Retry-After": "0.25"}, now) == 0.25
    assert retry_after({"Retry-After": date}, now) == 30.0
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, now) == 0.0
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 -0000"}, now) == 0.0
    assert retry_after({"retry-after-ms": "1250", "Retry-After": "2"}, now) == 1.25
    assert retry_after({"retry-after-ms": "soon", "Retry-After": "2"}, now) == 2.0


@given(st.text())
def test_any_retry_after_is_survived(value):
    for name in ("Retry-After", "retry-after-ms"):
        seconds = retry_after({name: value}, 0.0)
        assert seconds is None or seconds >= 0.0
