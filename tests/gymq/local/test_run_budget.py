"""The budget of a command: what is counted, when no more may begin, and when it stops."""

from __future__ import annotations

import pytest

from gymq.errors import UsageError
from gymq.local.run_budget import RunBudget, check_prices
from gymq.local.run_options import RunOptions
from gymq.store.run_status import RunStatus
from gymq.store.runs import RunConfig
from gymq.wire.calls import Usage
from gymq.wire.pricing import Prices

#: A unit of money for each token.
PRICES = {"models": {"openai:*": {"input": 1e6, "output": 1e6}}}


def budget(before: RunStatus, **limits: float) -> RunBudget:
    return RunBudget(RunOptions(data="d", model="openai:m", concurrency=8, prices=PRICES, **limits), before)


def status(ended: int = 0, each: int = 0, live: int = 0, kept: int = 0) -> RunStatus:
    tokens = {"openai:m": Usage(ended * each, 0)}
    by_status = {"completed": ended, "kept": kept}
    return RunStatus(RunConfig("r", "e", "a", "m"), "open", 100, 50, ended + kept, live, by_status, {}, tokens=tokens)


def test_money_bounds_what_may_be_in_flight_and_stops_the_run_when_the_rest_is_enough_for_none():
    money = budget(status(), max_cost=100.0)
    assert money.room(status(live=8)) == 8  # nothing is known yet
    assert money.room(status(3, 0)) is None  # the server counts no tokens
    assert money.room(status(2, 10, live=8)) == 8
    assert money.room(status(9, 10, live=1)) == 1
    assert money.over(status(9, 10, live=1), 0) == ""
    assert money.room(status(10, 10)) == 0
    assert money.over(status(10, 10), 0) == "--max-cost: 100 of 100 USD are spent"
    # What is in flight is waited for, unless all is spent
    assert money.over(status(3, 30, live=4), 0) == ""
    assert money.over(status(3, 30), 0) == "--max-cost: 90 of 100 USD are spent"
    assert money.over(status(3, 40, live=4), 0) == "--max-cost: 120 of 100 USD are spent"


def test_what_was_done_before_the_command_costs_it_nothing():
    money = budget(status(9, 10, kept=5), max_cost=100.0)
    assert money.room(status(11, 10, kept=40)) == 8
    assert money.over(status(18, 10, live=2, kept=40), 0) == ""
    assert money.over(status(19, 10, kept=40), 0)


def test_time_is_the_commands_own_and_without_limits_there_is_none():
    assert budget(status(), max_time=60.0).over(status(), 59.9) == ""
    assert budget(status(), max_time=60.0).over(status(), 60.0) == "--max-time: 60 s are over"
    assert budget(status()).over(status(10**6, 10**6), 1e9) == ""
    assert budget(status()).room(status(10**6, 10**6)) is None


@pytest.mark.parametrize(
    ("prices", "says"),
    [(None, "needs the prices"), (Prices.read(PRICES), "price of model 'vllm:j', which --prices does not have")],
)
def test_a_cost_that_cannot_be_known_is_no_limit(prices: Prices | None, says: str):
    with pytest.raises(UsageError, match=says):
        check_prices(RunOptions(data="d", model="openai:m", judge="vllm:j", max_cost=1.0), prices)
    check_prices(RunOptions(data="d", model="openai:m", judge="vllm:j"), prices)
