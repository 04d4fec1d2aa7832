"""Shared rate limits against a real server; the script's clock is the tests' own."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from gymq.api.limiter import HEAD_START, Learning, Limit, turn_in_queue
from gymq.errors import CallError
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.runtime.rate_limit import ALWAYS, SharedLimiter, digest
from gymq.store.connection import Connection
from gymq.store.scripts import FreeRequests, PermitRequest, RateLimitStatus, acquire_permits, read_rate_limits
from tests.support.shard import keys

NAME = "endpoint"
KEY = keys.rate(NAME)


class Script:
    """The script, at a time that only the test changes."""

    def __init__(self, connection):
        self.connection = connection
        self.now = 1_000_000_000_000.0

    async def ask(
        self, count=1, *, who="p", limits=(), back=(), refused=(), free=None, cost=1.0, costs=None, lowest=0.0, waited=0.0
    ):
        """Run it once."""
        asks = costs or [[cost] * len(limits)] * count
        back = list(back) or [0.0] * (len(limits) + 1)
        request = PermitRequest(
            NAME, who, "qwen at host", limits, asks, back, len(asks), waited, lowest, refused, free, self.now
        )
        return await self.connection.run(acquire_permits(request))

    def pass_seconds(self, seconds):
        """Let time pass for the script."""
        self.now += 1000 * seconds

    async def notes(self):
        """The hash as a dictionary of numbers."""
        flat = await self.connection.send("HGETALL", KEY)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {name.decode(): float(value) for name, value in pairs if name[:2] not in (b"w:", b"p:", b"la", b"by")}

    async def seconds(self, count, accept, *, demand=200):
        """Ask for permits every 100 ms; `accept` says of each whether the server takes it.

        Returns the permits and the accepted ones of each second.
        """
        permits, taken, refused = [], [], []
        for tick in range(10 * count):
            reply = await self.ask(demand, refused=refused)
            good = [accept() for _ in range(reply.granted)]
            refused = [reply.now] * good.count(False)
            if tick % 10 == 0:
                permits.append(0)
                taken.append(0)
            permits[-1] += reply.granted
            taken[-1] += good.count(True)
            self.pass_seconds(0.1)
        return permits, taken

    async def begin(self, accepted=50.0, sent=200):
        """Have a learned rate begin."""
        refused = int(0.5 * sent)
        return await self.ask(0, refused=[0.0], free=FreeRequests(sent, refused, accepted))


@pytest.fixture
def script(connection):
    """The script on the test's server."""
    return Script(connection)


@pytest.fixture
async def limiters(settings):
    """Makes limiters, each as in a process of its own."""
    made = []

    def make(*limits, learning=ALWAYS):
        made.append(SharedLimiter(Connection(settings, "rate"), NAME, list(limits), learning, "qwen at host"))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def commands(connection):
    """How many commands the server has carried out; the question is one of them."""
    info = await connection.send("INFO", "stats")
    return int(info.split(b"total_commands_processed:")[1].split()[0])


async def scripts(connection):
    """How many scripts the server has run."""
    info = await connection.send("INFO", "commandstats")
    return int(info.split(b"cmdstat_evalsha:calls=")[1].split(b",")[0])


# What the script grants.


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


# What it learns.


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


# What it shows.


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


# What a process does.


async def test_without_limits_and_refusals_no_command_is_sent(limiters, connection):
    one = limiters()
    before = await commands(connection)
    for _ in range(100):
        permit = await one.enter(tokens=1000.0)
        one.correct(permit, tokens=900.0)
    assert await commands(connection) == before + 1


async def test_many_that_wait_are_one_script(limiters, connection):
    one = limiters(Limit("requests", 1000.0, 1000.0))
    await one.enter()
    before = await scripts(connection)
    await asyncio.gather(*[one.enter() for _ in range(500)])
    assert await scripts(connection) - before <= 5


async def test_it_never_grants_more_than_the_bucket_allows(limiters):
    several = [limiters(Limit("requests", 50.0, 10.0)) for _ in range(3)]
    times: list[float] = []

    async def use(one):
        while True:
            await one.enter()
            times.append(time.monotonic())

    began = time.monotonic()
    tasks = [asyncio.create_task(use(one)) for one in several for _ in range(20)]
    await asyncio.sleep(2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    lasted = time.monotonic() - began
    assert 0.7 * 50 * lasted <= len(times) <= 10 + 50 * lasted + 1


async def refuse(one, count):
    """Have the endpoint refuse requests, and wait until the limiter has told Redis."""
    for permit in [await one.enter() for _ in range(count)]:
        one.refused(permit)
    await asyncio.wait_for(one._task, 10)


async def test_a_refusal_delays_no_other_request(limiters):
    one = limiters()
    for _ in range(50):
        await one.enter()
    await refuse(one, 2)
    assert one.learned is None
    assert (await asyncio.gather(*[one.enter() for _ in range(100)]))[-1].at == 0


async def test_refusals_that_follow_load_hold_all_requests_and_waits_are_told(limiters, connection):
    one = limiters(learning=Learning(lowest=2.0))
    await refuse(one, 20)
    assert one.learned == 2.0
    await one.enter()
    with pytest.raises(CallError):
        await one.enter(patience=0.1)
    assert (await one.enter()).waited > 0.1
    await one.enter()
    (status,) = await connection.run(read_rate_limits())
    assert status.refused == 20
    assert status.waited > 0.2


async def test_who_learns_nothing_is_never_held(limiters, connection):
    one = limiters(learning=Learning(enabled=False))
    before = await commands(connection)
    for permit in [await one.enter() for _ in range(100)]:
        one.refused(permit)
    await one.enter()
    assert await commands(connection) == before + 1


async def test_a_bound_holds_from_the_beginning(limiters):
    one = limiters(learning=Learning(lowest=7.0))
    await refuse(one, 20)
    assert one.learned == 7.0


async def test_rollouts_that_are_further_along_go_first(limiters):
    one = limiters(Limit("requests", 20.0, 1.0))
    await one.enter()
    order: list[int] = []

    async def use(name, step):
        await one.enter(place=turn_in_queue(name, step))
        order.append(name)

    # Arrived one second after the other, at these steps.
    steps = {0: 0, 1: 3, 2: 0, 3: 7, 4: 3}
    await asyncio.gather(*[use(name, step) for name, step in steps.items()])
    assert order == [3, 1, 4, 0, 2]


def test_no_request_waits_for_ever_because_others_are_further_along():
    assert turn_in_queue(0.0, 0) < turn_in_queue(HEAD_START + 1, 10**6)
    places = [turn_in_queue(0.0, step) for step in range(100)]
    assert places == sorted(places, reverse=True)
    assert len(set(places)) == 100


async def test_who_waits_too_long_gets_a_fault(limiters):
    one = limiters(Limit("requests", 0.01, 1.0))
    await one.enter()
    with pytest.raises(CallError) as caught:
        await one.enter(patience=0.2)
    assert caught.value.fault.kind == "timeout"


@pytest.mark.parametrize("later", [False, True])
async def test_a_permit_that_comes_as_its_call_is_cancelled_is_not_lost(limiters, monkeypatch, later):
    one = limiters(Limit("requests", 0.001, 1.0))
    insist = one._connection.insist

    async def and_cancel(*args):
        reply = await insist(*args)
        if not task.done():
            if later:
                asyncio.get_running_loop().call_soon(task.cancel)  # the permit is there, and the call has not heard of it
            else:
                task.cancel()
        return reply

    monkeypatch.setattr(one._connection, "insist", and_cancel)
    task = asyncio.create_task(one.enter())
    with pytest.raises(asyncio.CancelledError):
        await task
    await one.enter(patience=5)


async def test_what_was_used_is_corrected(limiters, script):
    one = limiters(Limit("tokens", 0.001, 1000.0))
    permit = await one.enter(tokens=1000.0)
    one.correct(permit, tokens=100.0)
    await one.enter(patience=5, tokens=850.0)
    assert (await script.notes())["l:tokens"] == pytest.approx(50, abs=1)


async def test_who_waits_waits_through_an_outage(limiters, connection, redis_server: EmbeddedRedis, monkeypatch):
    one = limiters(Limit("requests", 20.0, 1.0))
    await one.enter()
    redis_server.stop()
    task = asyncio.create_task(one.enter())
    await asyncio.sleep(0.5)
    assert not task.done()
    redis_server.start()
    await asyncio.wait_for(task, 20)


def test_a_digest_hides_what_it_is_of():
    assert "secret" not in digest("http://host", "model", "secret")
    assert digest("a", "b") != digest("ab", "")
