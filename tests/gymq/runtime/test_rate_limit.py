"""Shared rate limits against a real server; time passes by moving the server's notes into the past."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from gymq.api.backend import Limit
from gymq.errors import CallError
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.runtime import rate_limit
from gymq.runtime.rate_limit import DecayingCount, SharedLimiter, digest
from gymq.store.connection import Connection
from gymq.store.scripts import PermitRequest, Refusal, acquire_permits
from tests.support.shard import keys

NAME = "endpoint"
KEY = keys.rate(NAME)
#: Those fields of the script that are times.
TIMES = ("since", "cut", "bound", "sentat", "until")


@pytest.fixture
async def limiters(settings):
    """Makes limiters, each as in a process of its own."""
    made = []

    def make(*limits):
        made.append(SharedLimiter(Connection(settings, "rate"), NAME, list(limits)))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def ask(connection, count=1, *, who="p", limits=(), back=(), refusal=None, cost=1.0):
    """Run the script once."""
    back = list(back) or [0.0] * (len(limits) + 1)
    return await connection.run(
        acquire_permits(PermitRequest(NAME, who, limits, [[cost] * len(limits)] * count, back, refusal))
    )


async def notes(connection):
    """The hash as a dictionary of numbers."""
    flat = await connection.send("HGETALL", KEY)
    return {name.decode(): float(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


async def pass_seconds(connection, seconds):
    """Let time pass for the script."""
    for name, value in (await notes(connection)).items():
        if (name in TIMES or name.startswith(("t:", "w:"))) and value:
            await connection.send("HSET", KEY, name, f"{value - seconds * 1000:.6f}")


async def commands(connection):
    """How many commands the server has carried out; the question is one of them."""
    info = await connection.send("INFO", "stats")
    return int(info.split(b"total_commands_processed:")[1].split()[0])


async def scripts(connection):
    """How many scripts the server has run."""
    info = await connection.send("INFO", "commandstats")
    return int(info.split(b"cmdstat_evalsha:calls=")[1].split(b",")[0])


# What the script grants.


async def test_a_bucket_grants_its_burst_and_then_its_rate(connection):
    limits = [("requests", 2.0, 5.0)]
    reply = await ask(connection, 8, limits=limits)
    assert (reply.granted, reply.learned) == (5, False)
    assert 400 <= reply.wait <= 500
    await pass_seconds(connection, 1.0)
    assert (await ask(connection, 8, limits=limits)).granted == 2
    await pass_seconds(connection, 100.0)
    assert (await ask(connection, 8, limits=limits)).granted == 5


async def test_what_costs_more_than_a_bucket_holds_is_granted_by_a_full_one_and_leaves_a_debt(connection):
    limits = [("tokens", 100.0, 200.0)]
    reply = await ask(connection, 2, limits=limits, cost=500.0)
    assert (reply.granted, reply.wait) == (1, 2000)
    assert (await notes(connection))["l:tokens"] == -300
    await pass_seconds(connection, 4.9)
    assert (await ask(connection, 1, limits=limits, cost=500.0)).granted == 0
    await pass_seconds(connection, 0.2)
    assert (await ask(connection, 1, limits=limits, cost=500.0)).granted == 1


async def test_the_tightest_of_two_limits_counts_and_the_order_is_kept(connection):
    limits = [("requests", 100.0, 100.0), ("tokens", 10.0, 10.0)]
    first = await connection.run(acquire_permits(PermitRequest(NAME, "p", limits, [[1, 6], [1, 6], [1, 1]], [0, 0, 0])))
    assert first.granted == 1  # the third would fit, but it is not its turn
    assert (await notes(connection))["l:requests"] == pytest.approx(99, abs=0.1)


async def test_what_is_given_back_can_be_granted(connection):
    limits = [("tokens", 0.001, 100.0)]
    assert (await ask(connection, 1, limits=limits, cost=100.0)).granted == 1
    assert (await ask(connection, 1, limits=limits, cost=40.0)).granted == 0
    assert (await ask(connection, 1, limits=limits, cost=40.0, back=[50.0, 0.0])).granted == 1
    await ask(connection, 0, limits=limits, back=[1e9, 0.0])
    assert (await notes(connection))["l:tokens"] == 100


async def test_those_who_wait_share_what_there_is(connection):
    limits = [("requests", 10.0, 1.0)]
    for who in ("a", "b", "c", "d"):
        await ask(connection, 100, who=who, limits=limits)
    got = dict.fromkeys("abcd", 0)
    await connection.send("HSET", KEY, "l:requests", "0")
    for _ in range(20):
        await pass_seconds(connection, 0.4)
        for who in "abcd":
            got[who] += (await ask(connection, 100, who=who, limits=[("requests", 10.0, 4.0)])).granted
    assert sum(got.values()) >= 70
    assert max(got.values()) <= 1.3 * min(got.values())


async def test_one_who_waits_no_more_takes_no_share(connection):
    limits = [("requests", 10.0, 10.0)]
    await ask(connection, 20, who="a", limits=limits)
    await ask(connection, 20, who="b", limits=limits)
    await pass_seconds(connection, 10)
    assert (await ask(connection, 20, who="b", limits=limits)).granted == 10
    assert "w:a" not in await notes(connection)


async def test_limits_lapse_when_nobody_asks(connection):
    await ask(connection, 1, limits=[("requests", 1.0, 1.0)])
    assert 0 < await connection.send("PTTL", KEY) <= 120_000
    await ask(connection, 1, limits=[("tokens", 1.0, 1.0)], cost=1000.0)
    assert 900_000 < await connection.send("PTTL", KEY) <= 1_000_000  # as long as the debt lasts


# What it learns.


async def test_the_first_refusal_begins_at_half_of_what_the_process_was_doing(connection):
    reply = await ask(connection, refusal=Refusal(0, 0, True, 40.0))
    assert reply.learned
    found = await notes(connection)
    assert (found["rate"], found["top"], found["cut"]) == (20, 0, reply.now)


async def test_until_a_permit_is_refused_the_rate_doubles_each_second(connection):
    await ask(connection, refusal=Refusal(0, 0, True, 4.0))
    await pass_seconds(connection, 2.0)
    now = (await ask(connection, 50)).now
    await ask(connection, refusal=Refusal(now, 0, False, 0.0))
    found = await notes(connection)
    assert found["top"] == pytest.approx(8, rel=0.1)  # 2 a second, two seconds later
    assert found["rate"] == pytest.approx(4, rel=0.1)


async def test_a_hundred_refusals_at_once_count_once(connection):
    await ask(connection, refusal=Refusal(0, 0, True, 200.0))
    await pass_seconds(connection, 1.5)
    now = (await ask(connection, 500)).now
    for number in range(100):
        await ask(connection, 500, who=f"p{number % 4}", refusal=Refusal(now, 0, False, 0.0))
    found = await notes(connection)
    assert found["rate"] == pytest.approx(found["top"] / 2)
    await pass_seconds(connection, 1.5)  # a permit from before the cut says nothing of the rate after it
    await ask(connection, 500, refusal=Refusal(now - 1500, 0, False, 0.0))
    assert (await notes(connection))["rate"] == found["rate"]


async def test_it_climbs_back_in_ten_seconds_and_then_goes_on(connection):
    await ask(connection, refusal=Refusal(0, 0, True, 200.0))
    await pass_seconds(connection, 1.0)
    now = (await ask(connection, 500)).now
    await ask(connection, 500, refusal=Refusal(now, 0, False, 0.0))
    top = (await notes(connection))["top"]
    rates = []
    for _ in range(20):
        await pass_seconds(connection, 1.0)
        await ask(connection, 0)
        found = await notes(connection)
        await connection.send("HSET", KEY, "l:", "0", "bound", str(found["t:"]))
        await pass_seconds(connection, 0.1)
        granted = (await ask(connection, 1000)).granted
        rates.append(granted * 10)
    # 1.1 s pass in each round, besides the test's own time, which is longer on a busy machine.
    assert rates[0] < 0.95 * top
    assert sum(0.9 * top <= rate_limit <= 1.1 * top for rate_limit in rates) >= 3, rates
    assert rates[19] > 1.2 * top
    assert all(later >= 0.9 * earlier for earlier, later in pairwise(rates))


async def test_a_rate_that_held_nobody_is_halved_from_what_was_sent(connection):
    await ask(connection, refusal=Refusal(0, 0, True, 1000.0))
    for _ in range(20):  # far below it: ten a second
        await pass_seconds(connection, 1.0)
        now = (await ask(connection, 10)).now
    await ask(connection, refusal=Refusal(now, 0, False, 0.0))
    assert (await notes(connection))["top"] <= 30


async def test_who_joins_brings_what_he_was_doing(connection):
    await ask(connection, refusal=Refusal(0, 0, True, 40.0))
    await ask(connection, who="q", refusal=Refusal(0, 0, True, 60.0))
    assert (await notes(connection))["rate"] == pytest.approx(50, rel=0.05)


async def test_a_pause_holds_everybody_and_a_shorter_one_does_not_end_it(connection):
    await ask(connection, refusal=Refusal(0, 5000, True, 40.0))
    await ask(connection, refusal=Refusal(0, 1000, False, 0.0))
    reply = await ask(connection, who="q", limits=[("requests", 100.0, 100.0)])
    assert (reply.granted, 4000 < reply.wait <= 5000) == (0, True)
    await pass_seconds(connection, 5.1)
    assert (await ask(connection, who="q", limits=[("requests", 100.0, 100.0)])).granted == 1


async def test_the_learned_rate_ends_when_it_holds_nobody(connection):
    await ask(connection, refusal=Refusal(0, 0, True, 40.0))
    await pass_seconds(connection, 29)
    assert (await ask(connection)).learned
    await pass_seconds(connection, 2)
    reply = await ask(connection, 1000)
    assert (reply.granted, reply.wait, reply.learned) == (1000, 0, False)
    assert await notes(connection) == {}


# What a process does.


async def test_without_limits_and_refusals_no_command_is_sent(limiters, connection):
    one = limiters()
    before = await commands(connection)
    for _ in range(100):
        permit = await one.enter(tokens=1000.0)
        one.answered(permit, tokens=900.0)
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


async def test_the_learned_rate_is_obeyed_and_waits_are_told(limiters):
    one = limiters()
    one.refused(await one.enter(), 0.3)
    permit = await one.enter()
    assert 0.3 <= permit.waited < 3
    assert permit.at > 0


async def test_an_absurd_pause_is_cut_short(limiters, connection):
    one = limiters()
    one.refused(await one.enter(), 1e12)
    with pytest.raises(CallError):
        await one.enter(patience=0.3)
    wait = (await ask(connection)).wait
    assert 50_000 < wait <= 1000 * rate_limit.MAX_RETRY_AFTER


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


async def test_what_was_used_is_corrected(limiters, connection):
    one = limiters(Limit("tokens", 0.001, 1000.0))
    permit = await one.enter(tokens=1000.0)
    one.answered(permit, tokens=100.0)
    await one.enter(patience=5, tokens=850.0)
    assert (await notes(connection))["l:tokens"] == pytest.approx(50, abs=1)


async def test_who_waits_waits_through_an_outage(limiters, connection, redis_server: EmbeddedRedis, monkeypatch):
    one = limiters(Limit("requests", 20.0, 1.0))
    await one.enter()
    redis_server.stop()
    task = asyncio.create_task(one.enter())
    await asyncio.sleep(0.5)
    assert not task.done()
    redis_server.start()
    await asyncio.wait_for(task, 20)


def test_what_happened_long_ago_is_forgotten():
    fading = DecayingCount(5.0)
    for i in range(1000):
        fading.add(i / 100)
    assert fading.rate(10.0) == pytest.approx(100, rel=0.2)
    assert fading.rate(60.0) < 0.01


def test_a_digest_hides_what_it_is_of():
    assert "secret" not in digest("http://host", "model", "secret")
    assert digest("a", "b") != digest("ab", "")
