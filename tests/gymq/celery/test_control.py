"""Remote control of real workers."""

from __future__ import annotations

import json

import pytest

from tests.support.shard import keys
from tests.support.waiting import wait_until


def stats(agent) -> dict:
    return json.loads(agent.celery("inspect", "stats", "--json"))[agent.name]


@pytest.mark.slow
def test_inspect_stats_holds_the_actors_own_beside_celerys(worker):
    found = stats(worker("agent", "--option", "a=1", "--option", "b=x=y"))
    assert found["gymq"] == {"options": {"a": "1", "b": "x=y"}, "woken": 0, "draining": False}
    assert found["pool"]["implementation"] == "celery.concurrency.thread:TaskPool"


@pytest.mark.heavy
def test_pause_and_resume_stand_in_redis_and_wake_the_actor(worker):
    agent = worker("agent")

    assert "paused" in agent.celery("control", "pause")
    assert agent.redis.exists(keys.paused)
    assert stats(agent)["gymq"]["woken"] == 1

    assert "resumed" in agent.celery("control", "resume")
    assert not agent.redis.exists(keys.paused)
    assert stats(agent)["gymq"]["woken"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", ["drain", "shutdown"])
def test_drain_and_shutdown_let_the_actor_finish_first(worker, command):
    agent = worker("agent", "--option", "work=2")
    agent.celery("control", command)
    agent.celery("control", command)  # twice is once
    wait_until(lambda: agent.said[:2] == ["main", "drain"])
    assert agent.process.wait(15) == 0, agent.text
    assert agent.said == ["main", "drain", "done"]


@pytest.mark.slow
def test_drain_shuts_an_executor_down_too(worker):
    executor = worker("executor")
    executor.celery("control", "drain")
    assert executor.process.wait(15) == 0, executor.text
