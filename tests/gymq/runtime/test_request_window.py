"""What a process remembers of its requests."""

from __future__ import annotations

from gymq.runtime.request_window import RequestWindow
from gymq.store.scripts import FreeRequests


def test_a_burst_counts_as_what_it_is_in_a_second():
    window = RequestWindow()
    for _ in range(512):
        window.sent(100.0)
    for _ in range(492):
        window.refused(100.0)
    assert window.counts(100.1) == FreeRequests(512, 492, 20.0)


def test_a_steady_rate_is_seen_as_such():
    window = RequestWindow()
    for tick in range(2000):
        window.sent(tick / 100)
        if tick % 10 == 0:
            window.refused(tick / 100)
    counts = window.counts(19.995)
    assert (counts.sent, counts.refused) == (1000, 100)
    assert 88 <= counts.accepted <= 92


def test_refusals_count_in_the_second_in_which_their_requests_were_sent():
    window = RequestWindow()
    for _ in range(100):
        window.sent(50.5)
    window.sent(58.5)
    for _ in range(10):
        window.refused(50.5)  # eight seconds late
    assert window.counts(58.6) == FreeRequests(101, 10, 1.0)
    assert window.counts(60.5) == FreeRequests(1, 0, 0.4)
    window.refused(20.0)  # too late to count
    assert window.counts(75.0) == FreeRequests(0, 0, 0.0)
