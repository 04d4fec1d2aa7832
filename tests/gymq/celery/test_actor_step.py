"""An actor inside a real Celery worker: it lives, is seen, drains, stops and dies with its process."""

from __future__ import annotations

import time

import pytest

from tests.support.celery_listener import CeleryListener
from tests.support.tiers import heavy
from tests.support.waiting import wait_until


@pytest.fixture
def listener(redis_url):
    heard = CeleryListener(redis_url)
    yield heard
    heard.stop()


@pytest.mark.slow
def test_the_actors_events_are_sent_in_the_workers_name(worker, listener):
    agent = worker("agent")
    wait_until(lambda: listener.kinds(uuid="r1") == ["task-received", "task-started", "task-succeeded"])
    assert {event["hostname"] for event in listener.events} == {agent.name}


@pytest.mark.slow
def test_sigterm_drains_the_actor_while_the_worker_stays_visible(worker, listener):
    # Given an agent that drains until it is let go
    agent = worker("agent", "--option", "held=1")
    wait_until(lambda: listener.kinds(type="worker-heartbeat"))

    # When it gets SIGTERM
    agent.process.terminate()
    wait_until(lambda: agent.said == ["main", "drain"])
    heartbeats = len(listener.kinds(type="worker-heartbeat"))

    # Then it still answers remote control, and takes no more tasks
    assert '"draining": true' in agent.celery("inspect", "stats", "--json")
    wait_until(lambda: "gymq.rollouts" not in agent.celery("inspect", "active_queues", "--json"))
    # with its heart beating all the while
    wait_until(lambda: len(listener.kinds(type="worker-heartbeat")) >= heartbeats + 2, 20, "two heartbeats")
    assert agent.process.poll() is None
    # And when the actor is done it ends well, its last events sent
    agent.let_go()
    assert agent.process.wait(25) == 0, agent.text
    assert agent.said == ["main", "drain", "done"]
    wait_until(lambda: listener.kinds(uuid="r2") == ["task-failed"])
    kinds = listener.kinds()
    assert kinds.index("worker-offline") > len(kinds) - 1 - kinds[::-1].index("worker-heartbeat")


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[15, 15], *heavy([15, 2], [2])])
def test_a_second_sigterm_or_sigint_stops_the_actor(worker, numbers):
    agent = worker("agent", "--option", "work=600")
    for number in numbers:
        agent.process.send_signal(number)
        time.sleep(0.3)
    assert agent.process.wait(10) == 0, agent.text
    assert agent.said == ["main", *(["drain"] if len(numbers) == 2 else []), "stop", "done"]


def test_a_drain_that_takes_too_long_is_stopped(worker):
    agent = worker("agent", "--option", "work=600", "--option", "drain_limit=1")
    agent.process.terminate()
    assert agent.process.wait(10) == 0, agent.text
    assert agent.said == ["main", "drain", "stop", "done"]


@pytest.mark.slow
def test_an_actor_that_does_not_stop_is_left_behind(worker):
    agent = worker("agent", "--option", "hang=1", "--option", "drain_limit=0.5")
    agent.process.terminate()
    assert agent.process.wait(20) == 1
    assert "Fake did not stop within 10 s" in agent.text


@pytest.mark.slow
@pytest.mark.parametrize(("option", "says"), [("die=1", "Fake died: ValueError: boom"), ("end=1", "returned from main")])
def test_the_death_of_the_actor_ends_the_process(worker, option, says):
    agent = worker("agent", "--option", option, ready=False)
    assert agent.process.wait(20) == 1
    assert says in agent.text.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("role", ["model", *heavy("resource")])
def test_other_roles_read_no_queue(worker, role):
    found = worker(role)
    assert "gymq" not in found.celery("inspect", "active_queues", "--json").replace("celery@", "")
    found.process.terminate()
    assert found.process.wait(10) == 0, found.text


@pytest.mark.slow
def test_celerys_own_command_line_starts_no_worker(worker):
    agent = worker("agent")
    assert "start workers by `gymq worker agent|model|resource|executor`" in agent.celery("worker")


def test_the_worker_goes_on_when_redis_comes_back(worker, redis_server):
    # Given a worker whose server goes away for a while
    agent = worker("agent")
    redis_server.stop()
    time.sleep(1)
    redis_server.start()

    # Then it answers again, and drains as before
    wait_until(lambda: '"draining": false' in agent.celery("inspect", "stats", "--json"), limit=20)
    agent.process.terminate()
    assert agent.process.wait(15) == 0, agent.text
