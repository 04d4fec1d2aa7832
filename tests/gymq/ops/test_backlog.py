"""Backlog seconds: what waits by what has been served in the last minute, and never less than the oldest has waited."""

from __future__ import annotations

import pytest

from gymq.ops.backlog import RATE_WINDOW, Backlog
from gymq.ops.mailboxes import Mailbox
from gymq.ops.stream_flow import Flow

STREAM = (0, "m:model:x")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backlog(clock) -> Backlog:
    return Backlog(clock)


def note(backlog: Backlog, clock: Clock, after: float, served: int, stream: tuple[int, str] = STREAM) -> None:
    clock.now += after
    backlog.note({"model:x": Flow({stream: served})})


def box(waiting: int, oldest: float = 1.0) -> Mailbox:
    return Mailbox("model:x", waiting, 5, 1, 0, oldest)


def test_it_is_what_waits_by_the_messages_served_a_second(backlog, clock):
    note(backlog, clock, 0, 1000)
    note(backlog, clock, 10, 1200)
    assert backlog.rate("model:x") == 20
    assert backlog.seconds(box(600)) == 30


def test_it_is_no_less_than_the_oldest_message_has_waited(backlog, clock):
    note(backlog, clock, 0, 0)
    assert backlog.seconds(box(3, oldest=7.0)) == 7  # one look gives no rate
    note(backlog, clock, 10, 0)
    assert backlog.seconds(box(3, oldest=17.0)) == 17  # no worker serves it
    note(backlog, clock, 10, 1000)
    assert backlog.seconds(box(3, oldest=27.0)) == 27


def test_it_is_nothing_where_nothing_waits(backlog, clock):
    note(backlog, clock, 0, 0)
    note(backlog, clock, 10, 100)
    assert backlog.seconds(box(0, oldest=0.0)) == 0


def test_the_rate_is_that_of_the_last_minute(backlog, clock):
    for second in range(0, 600, 5):
        note(backlog, clock, 5, 100 * second)
    assert backlog.rate("model:x") == 100
    for _ in range(int(RATE_WINDOW / 5) + 1):
        note(backlog, clock, 5, 100 * 595)
    assert backlog.rate("model:x") == 0


def test_a_stream_that_was_made_again_counts_for_nothing_and_a_new_one_from_its_beginning(backlog, clock):
    note(backlog, clock, 0, 5000)
    note(backlog, clock, 10, 10)
    assert backlog.rate("model:x") == 0
    note(backlog, clock, 0, 200, (0, "m:@worker"))
    assert backlog.rate("model:x") == 20
