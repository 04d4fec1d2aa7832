"""The waits between retries."""

from __future__ import annotations

from gymq.backoff import backoff


def test_waits_double_up_to_a_bound():
    assert [backoff(failures, 0.5, 3.0) for failures in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff(10_000, 0.5, 3.0) == 3.0
