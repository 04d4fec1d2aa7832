"""The permits that the script of rate limits grants and shows; its clock is the tests' own."""

from __future__ import annotations

import pytest

from gymq.store.scripts import RateLimitStatus, read_rate_limits
from tests.support.permits import KEY
from tests.support.shard import keys


async def test_a_bucket_grants_its_burst_and_then_its_rate(script):
    limits = [("requests", 2.0, 5.0)]
    reply = await script.ask(8, limits=limits)
    assert (reply.granted, reply.learned) == (5, None)
    assert 400 <= reply.wait <= 500
    script.pass_seconds(1.0)
    assert (await script.ask(8, limits=limits)).granted == 2
    script.pass_seconds(100.0)
    assert (await script.ask(8, limits=limits)).granted == 5


async def test_what_costs_more_than_a_bucket_holds_is_granted_by_a_full_one_and_leaves_a_debt(script):
    limits = [("tokens", 100.0, 200.0)]
    reply = await script.ask(2, limits=limits, cost=500.0)
    assert (reply.granted, reply.wait) == (1, 2000)
    assert (await script.notes())["l:tokens"] == -300
    script.pass_seconds(4.9)
    assert (await script.ask(1, limits=limits, cost=500.0)).granted == 0
    script.pass_seconds(0.2)
    assert (await script.ask(1, limits=limits, cost=500.0)).granted == 1


async def test_the_tightest_of_two_limits_counts_and_the_order_is_kept(script):
    limits = [("requests", 100.0, 100.0), ("tokens", 10.0, 10.0)]
    first = await script.ask(limits=limits, costs=[[1, 6], [1, 6], [1, 1]])
    assert first.granted == 1  # the third would fit, but it is not its turn
    assert (await script.notes())["l:requests"] == pytest.approx(99, abs=0.1)


async def test_what_is_given_back_can_be_granted(script):
    limits = [("tokens", 0.001, 100.0)]
    assert (await script.ask(1, limits=limits, cost=100.0)).granted == 1
    assert (await script.ask(1, limits=limits, cost=40.0)).granted == 0
    assert (await script.ask(1, limits=limits, cost=40.0, back=[50.0, 0.0])).granted == 1
    await script.ask(0, limits=limits, back=[1e9, 0.0])
    assert (await script.notes())["l:tokens"] == 100


async def test_those_who_wait_share_what_there_is(script):
    limits = [("requests", 10.0, 1.0)]
    for who in ("a", "b", "c", "d"):
        await script.ask(100, who=who, limits=limits)
    got = dict.fromkeys("abcd", 0)
    await script.connection.send("HSET", KEY, "l:requests", "0")
    for _ in range(20):
        script.pass_seconds(0.4)
        for who in "abcd":
            got[who] += (await script.ask(100, who=who, limits=[("requests", 10.0, 4.0)])).granted
    assert sum(got.values()) >= 70
    assert max(got.values()) <= 1.3 * min(got.values())


async def test_one_who_waits_no_more_takes_no_share(script):
    limits = [("requests", 10.0, 10.0)]
    await script.ask(20, who="a", limits=limits)
    await script.ask(20, who="b", limits=limits)
    script.pass_seconds(10)
    assert (await script.ask(20, who="b", limits=limits)).granted == 10
    assert not await script.connection.send("HEXISTS", KEY, "w:a")


async def test_limits_lapse_when_nobody_asks(script):
    await script.ask(1, limits=[("requests", 1.0, 1.0)])
    assert 0 < await script.connection.send("PTTL", KEY) <= 120_000
    await script.ask(1, limits=[("tokens", 1.0, 1.0)], cost=1000.0)
    assert 900_000 < await script.connection.send("PTTL", KEY) <= 1_000_000  # as long as the debt lasts


async def test_what_requests_wait_for_can_be_read(script):
    limits = [("requests", 2.0, 4.0)]
    await script.ask(10, limits=limits)
    await script.ask(3, who="q", limits=limits, waited=2.5)
    (status,) = await script.connection.run(read_rate_limits(script.now))
    assert status == RateLimitStatus("qwen at host", None, "requests", 2.0, 9, 2.5, 0)
    await script.begin(accepted=0.75)
    await script.ask(10, limits=limits)
    (status,) = await script.connection.run(read_rate_limits(script.now))
    assert (status.learned, status.limit, status.rate, status.refused) == (0.75, "learned", 0.75, 1)
    (status,) = await script.connection.run(read_rate_limits(script.now + 5000))
    assert status.waiting == 0  # who waited has gone


async def test_limits_that_lapsed_are_not_shown(script):
    await script.ask(1, limits=[("requests", 2.0, 4.0)])
    await script.connection.send("DEL", KEY)
    assert await script.connection.run(read_rate_limits()) == []
    assert await script.connection.send("EXISTS", keys.rates) == 0
