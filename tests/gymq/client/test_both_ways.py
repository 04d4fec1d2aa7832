"""Functions and objects of scripts and notebooks: without a loop, in a running loop, and awaited."""

from __future__ import annotations

import asyncio
import inspect

import pytest

import gymq
from gymq.client.consumer import consume
from gymq.client.producer import produce, produce_async
from gymq.client.publish_weights import publish_weights, publish_weights_async
from gymq.store.runs import RunConfig
from tests.support import rollouts
from tests.support.rollouts import make_run, status

CONFIG = RunConfig("r", "weather", "tool", "scripted")
ROWS = [{"prompt": f"What is the weather in {city}?"} for city in ("Oslo", "Lima")]


@pytest.fixture
async def finished(connection):
    """A run of three rollouts that have ended."""
    run = await make_run(connection)
    await run.finish(3)


@pytest.mark.parametrize("name", sorted(name for name in gymq.PUBLIC if name.endswith("_async")))
def test_twins_take_the_same_arguments(name: str):
    assert inspect.iscoroutinefunction(getattr(gymq, name))
    one, other = (inspect.signature(getattr(gymq, each)) for each in (name, name.removesuffix("_async")))
    assert one == other


async def test_results_are_read_and_acknowledged_in_a_running_loop_by_for_and_by_async_for(finished, settings):
    # Given a loop that is running, as in a notebook
    first = consume("r", "first", settings=settings)
    assert [rollout.row for rollout in first] == [0, 1, 2]
    second = consume("r", "second", settings=settings)
    ticks = asyncio.create_task(asyncio.sleep(0))
    seen = []
    async for rollout in second:
        seen.append(rollout)
        await second.ack_async(rollout)
    assert [rollout.row for rollout in seen] == [0, 1, 2]
    assert ticks.done()
    await second.close_async()
    # Then what was not acknowledged comes again, and the other consumer is done
    first.close()
    again = consume("r", "first", settings=settings)
    for rollout in again:
        again.ack(rollout)
    again.close()
    assert [rollout.row for rollout in consume("r", "second", settings=settings)] == []


def test_a_loop_that_is_left_goes_on_where_it_was_left(settings):
    rollouts.with_link(settings, _make)
    results = consume("r", "trainer", settings=settings)
    for rollout in results:
        assert rollout.row == 0
        break
    assert [rollout.row for rollout in results] == [1, 2]
    results.close()


async def _make(connection) -> None:
    await (await make_run(connection)).finish(3)


async def test_rows_are_enqueued_in_a_running_loop_and_awaited(settings, monkeypatch):
    monkeypatch.setenv("GYMQ_REDIS_URL", settings.redis_url)
    assert produce(CONFIG, ROWS, last=False).rows == 2
    assert (await produce_async(CONFIG, ROWS)).known == 2
    assert (await asyncio.to_thread(status, settings, "r")).state == "closed"


@pytest.mark.slow
async def test_weights_are_published_in_a_running_loop_and_awaited(settings, tmp_path):
    assert publish_weights("toy", 1, str(tmp_path), settings=settings).wanted.version == 1
    assert (await publish_weights_async("toy", 2, str(tmp_path), settings=settings)).wanted.version == 2
