"""Shared rate limits in a process, against a real server."""

from __future__ import annotations

import asyncio
import time

import pytest

from gymq.api.limiter import HEAD_START, Learning, Limit, turn_in_queue
from gymq.errors import CallError
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.runtime.rate_limit import ALWAYS, SharedLimiter, digest
from gymq.store.connection import Connection
from gymq.store.scripts import read_rate_limits
from tests.support.permits import NAME


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
