"""Which events a process's rate limits make."""

from __future__ import annotations

import pytest

from gymq.observe.events import LimitInForce, LimitLifted, subscribe, unsubscribe
from gymq.runtime.limit_teller import PAUSE, LimitTeller
from gymq.store.scripts import PermitReply


@pytest.fixture
def told():
    """The events, and a teller that makes them: `told(limit, rate, learned, now)` returns those of a reply."""
    events: list[object] = []
    for kind in (LimitInForce, LimitLifted):
        subscribe(kind, events.append)
    teller = LimitTeller("qwen at host")

    def reply(limit="", rate=0.0, learned=None, now=0.0):
        teller.replied(PermitReply(0, 0, 0, learned, limit, rate), 7, now)
        made = list(events)
        events.clear()
        return made

    yield reply
    unsubscribe(events.append)


def test_a_limit_that_holds_requests_is_told_once(told):
    assert told() == []
    assert told("requests", 2.0, now=1.0) == [LimitInForce("qwen at host", "requests", 2.0, 7)]
    assert [told("requests", 2.0, now=float(now)) for now in range(2, 200)] == [[]] * 198


def test_a_learned_rate_is_told_again_when_it_has_changed_much(told):
    told("learned", 10.0, 10.0, now=1.0)
    assert told("learned", 100.0, 100.0, now=2.0) == []
    assert told("learned", 12.0, 12.0, now=1.0 + PAUSE) == []
    assert told("learned", 20.0, 20.0, now=2.0 + PAUSE) == [LimitInForce("qwen at host", "learned", 20.0, 7)]


def test_a_learned_rate_that_ends_is_told(told):
    told("learned", 10.0, 10.0, now=1.0)
    assert told(learned=10.0, now=2.0) == []
    assert told(now=3.0) == [LimitLifted("qwen at host", "learned")]
    assert told(now=4.0) == []


def test_a_stated_limit_ends_when_it_has_held_no_request_for_a_while(told):
    told("tokens", 10.0, now=1.0)
    assert told(now=20.0) == []
    assert told(now=1.0 + PAUSE) == [LimitLifted("qwen at host", "tokens")]


def test_a_learned_rate_takes_the_place_of_a_stated_limit_and_keeps_it_while_it_holds(told):
    told("requests", 10.0, now=1.0)
    assert told("tokens", 5.0, now=1.5) == []
    assert told("learned", 3.0, 3.0, now=2.0) == [
        LimitLifted("qwen at host", "requests"),
        LimitInForce("qwen at host", "learned", 3.0, 7),
    ]
    for now in range(3, 300):
        assert told(["requests", "learned"][now % 2], 10.0 if now % 2 == 0 else 3.0, 3.0, now=float(now)) == []
