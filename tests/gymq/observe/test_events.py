"""Events reach those that subscribed to their kind, and only those."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gymq.observe import events
from gymq.observe.events import Admitted, MailTaken, emit, subscribe, unsubscribe, wanted


@pytest.fixture
def listen() -> Iterator[Callable[..., None]]:
    subscribers: list[Callable[[Any], None]] = []

    def listen(kind: type[events.Event], subscriber: Callable[[Any], None]) -> None:
        subscribers.append(subscriber)
        subscribe(kind, subscriber)

    yield listen
    for subscriber in subscribers:
        unsubscribe(subscriber)


def test_an_event_reaches_every_subscriber_of_its_kind_and_no_other(listen):
    admitted: list[Any] = []
    again: list[Any] = []
    taken: list[Any] = []
    listen(Admitted, admitted.append)
    listen(Admitted, again.append)
    listen(MailTaken, taken.append)
    emit(Admitted(3))
    assert admitted == again == [Admitted(3)]
    assert taken == []


def test_an_event_without_subscribers_goes_nowhere_and_is_not_wanted():
    assert not wanted(Admitted)
    emit(Admitted(1))


def test_a_subscriber_that_left_hears_nothing(listen):
    heard: list[Any] = []
    listen(Admitted, heard.append)
    assert wanted(Admitted)
    unsubscribe(heard.append)
    emit(Admitted(1))
    assert heard == []
    assert not wanted(Admitted)


def test_what_a_subscriber_raises_is_logged_and_the_others_hear_the_event(listen, caplog):
    heard: list[Any] = []

    def broken(_: Admitted) -> None:
        raise ValueError("no")

    listen(Admitted, broken)
    listen(Admitted, heard.append)
    with caplog.at_level(logging.ERROR):
        emit(Admitted(1))
    assert heard == [Admitted(1)]
    assert "a subscriber to Admitted failed" in caplog.text
