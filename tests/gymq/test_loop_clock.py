"""The loop's clock: time in which the loop stood still does not count."""

from __future__ import annotations

import asyncio
import time

import pytest

from gymq.loop_clock import STEP, LoopClock, TimeLimit


class Time:
    """Another clock, which is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_long_step_is_cut_to_two_ticks():
    time_ = Time()
    clock = LoopClock(1.0, time_)
    began = clock.now()
    time_.now += 1.5
    assert clock.now() - began == 1.5
    time_.now += 3600.0
    assert clock.now() - began == 3.5


async def test_the_clock_goes_with_the_other_while_the_loop_turns():
    clock = LoopClock(0.01)
    began, others = clock.now(), time.monotonic()
    await asyncio.sleep(0.2)
    assert 0 < clock.now() - began <= time.monotonic() - others


async def test_a_limit_ends_what_takes_longer():
    with pytest.raises(TimeoutError):
        async with TimeLimit(0.05) as limit:
            await asyncio.sleep(30)
    assert limit.expired()


async def test_a_limit_ends_nothing_because_the_loop_stood_still():
    async with TimeLimit(STEP * 4) as limit:
        await asyncio.sleep(0.01)
        time.sleep(STEP * 5)
        # On waking, the limit's timer is due before what is waited for.
        await asyncio.sleep(STEP)
    assert not limit.expired()


async def test_a_paused_limit_ends_nothing_until_it_goes_on():
    waited = False
    with pytest.raises(TimeoutError):
        async with TimeLimit(0.05) as limit:
            limit.pause()
            await asyncio.sleep(0.1)
            waited = True
            limit.resume()
            await asyncio.sleep(30)
    assert waited


async def test_without_a_limit_nothing_ends():
    async with TimeLimit(None) as limit:
        await asyncio.sleep(0.01)
    assert not limit.expired()
