"""The rate that the script of rate limits learns from refusals; its clock is the tests' own."""

from __future__ import annotations

import random

import pytest

from gymq.store.scripts import FreeRequests, RateLimitStatus, read_rate_limits
from tests.support.permits import KEY


async def test_refusals_at_random_begin_no_learned_rate(script):
    chance = random.Random(4)
    for rate in (2, 20, 200):
        for _ in range(30):
            sent = 10 * rate  # the last ten seconds
            refused = sum(chance.random() < 0.1 for _ in range(sent))
            reply = await script.ask(0, refused=[0.0], free=FreeRequests(sent, refused, rate * 0.9))
            assert (reply.learned, reply.wait) == (None, 0), (sent, refused)
            script.pass_seconds(11)


async def test_one_refusal_teaches_nothing_and_is_counted(script):
    reply = await script.ask(0, refused=[0.0], free=FreeRequests(1, 1, 0.0))
    assert reply.learned is None
    (status,) = await script.connection.run(read_rate_limits(script.now))
    assert status == RateLimitStatus("qwen at host", None, "", 0.0, 0, 0.0, 1)


async def test_refusals_of_all_processes_begin_it_at_what_is_accepted(script):
    assert (await script.ask(0, who="a", refused=[0.0], free=FreeRequests(3, 2, 1.0))).learned is None
    script.pass_seconds(2)
    assert (await script.ask(0, who="b", refused=[0.0], free=FreeRequests(4, 4, 3.0))).learned == 4.0


async def test_what_was_sent_long_ago_does_not_count(script):
    await script.ask(0, who="a", refused=[0.0], free=FreeRequests(3, 2, 1.0))
    script.pass_seconds(11)
    assert (await script.ask(0, who="b", refused=[0.0], free=FreeRequests(4, 3, 3.0))).learned is None


async def test_a_true_limit_is_found_and_kept(script):
    await script.begin(accepted=180.0)
    level = [100.0, script.now]

    def accept():
        level[0] = min(100.0, level[0] + (script.now - level[1]) / 10)
        level[1] = script.now
        level[0] -= level[0] >= 1
        return level[0] > 0

    permits, taken = await script.seconds(40, accept)
    assert sum(taken) >= 0.97 * 4000
    assert sum(permits) <= 1.25 * sum(taken)


@pytest.mark.parametrize("share", [0.01, 0.04, 0.1])
async def test_a_rate_among_refusals_at_random_is_left_within_seconds(script, share):
    chance = random.Random(5)
    await script.begin(accepted=20.0)
    permits, _ = await script.seconds(12, lambda: chance.random() >= share)
    assert max(permits) >= 800
    assert min(permits) >= 15


async def test_a_limit_that_changes_is_followed_within_seconds(script):
    limit = [200.0]
    level = [0.0, script.now]

    def accept():
        level[0] = min(limit[0], level[0] + (script.now - level[1]) * limit[0] / 1000)
        level[1] = script.now
        if level[0] < 1:
            return False
        level[0] -= 1
        return True

    await script.begin(accepted=200.0)
    await script.seconds(5, accept)
    limit[0] = 20.0
    permits, taken = await script.seconds(10, accept)
    assert permits[-1] <= 40
    assert sum(taken) >= 190
    limit[0] = 200.0
    _, taken = await script.seconds(15, accept)
    assert sum(taken[10:]) >= 0.9 * 1000


async def test_the_rate_never_falls_below_what_is_accepted(script):
    chance = random.Random(6)
    await script.begin(accepted=100.0)
    permits, taken = await script.seconds(20, lambda: chance.random() >= 0.4)
    for before, after in zip(taken, permits[1:], strict=False):
        assert after >= 0.85 * before


async def test_a_server_that_takes_nothing_is_asked_twice_a_second_and_its_return_noticed(script):
    await script.begin(accepted=64.0)
    permits, _ = await script.seconds(30, lambda: False)
    assert sum(permits[20:]) <= 7
    permits, _ = await script.seconds(15, lambda: True)
    assert permits[-1] >= 64


async def test_a_refusal_from_before_the_last_cut_cuts_nothing(script):
    begun = await script.begin(accepted=50.0)
    for _ in range(30):
        script.pass_seconds(0.1)
        reply = await script.ask(100, refused=[begun.now] * 50)
        assert reply.learned >= 50


async def test_it_climbs_by_steps_that_double(script):
    await script.begin(accepted=100.0)
    rates = []
    for _ in range(6):
        for _ in range(10):
            script.pass_seconds(0.1)
            reply = await script.ask(1000)
        rates.append(reply.learned)
    assert rates == pytest.approx([105, 115.5, 138.6, 194.04, 349.272, 908.107], rel=1e-4)


async def test_it_climbs_among_processes_that_share_it(script):
    await script.begin(accepted=20.0)
    for _ in range(100):
        for who in ("a", "b"):
            reply = await script.ask(50, who=who)
            script.pass_seconds(0.05)
    assert reply.learned > 200


async def test_it_never_falls_below_the_stated_bound(script):
    await script.begin(accepted=64.0)
    for _ in range(40):
        script.pass_seconds(0.5)
        reply = await script.ask(50, refused=[script.now - 400] * 20, lowest=10.0)
    assert reply.learned == 10.0


async def test_who_joins_brings_what_he_was_doing_once(script):
    await script.ask(0, who="a", refused=[0.0], free=FreeRequests(200, 100, 50.0))
    assert (await script.ask(0, who="b", refused=[0.0], free=FreeRequests(20, 1, 30.0))).learned == 80
    assert (await script.ask(0, who="a", refused=[0.0], free=FreeRequests(20, 1, 30.0))).learned == 80


async def test_the_learned_rate_ends_when_it_holds_nobody(script):
    await script.begin(accepted=40.0)
    script.pass_seconds(9)
    assert (await script.ask()).learned is not None
    script.pass_seconds(2)
    reply = await script.ask(1000)
    assert (reply.granted, reply.wait, reply.learned) == (1000, 0, None)
    assert not {"rate", "round", "l:"} & set(await script.notes())
    assert not await script.connection.send("HEXISTS", KEY, "p:p")
