"""SIGTERM for each role while it holds calls: it stays visible, finishes what it can, hands back the rest, leaves nobody."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gymq.store.runs import RunConfig
from tests.support.celery_listener import CeleryListener
from tests.support.farm import guest_rows, journal_lines, slow_rows
from tests.support.redis_server import running
from tests.support.tiers import heavy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.chaos


def answers(farm, name: str) -> bool:
    """Whether a worker answers `celery inspect ping`."""
    argv = [sys.executable, "-m", "celery", "-A", "gymq", "inspect", "ping", "-d", f"{name}@{socket.gethostname()}"]
    environment = os.environ | {"GYMQ_REDIS_URL": farm.settings.redis_url}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, check=False)
    return "pong" in done.stdout


def begun(journal: Path, what: str) -> int:
    return sum(line[1] == what for line in journal_lines(journal))


@pytest.mark.slow
@pytest.mark.parametrize("role", ["agent", *heavy("model", "resource")])
def test_a_worker_that_drains_is_seen_finishes_its_calls_and_leaves_no_process(farm, tmp_path, no_leaks, role):
    # Given workers at calls of eight seconds
    journal = tmp_path / "journal"
    names = ("agent", "model", "resource")
    workers = {name: farm.start(name, model="scripted", environments="slow") for name in names}
    farm.wait_for(3)
    heard = CeleryListener(farm.settings.redis_url)
    rows = slow_rows(journal, 10, [[["step", {"number": 1}]]], seconds=8, latency=8 if role == "model" else 0)
    farm.produce(RunConfig("drained", "slow", "tool", "scripted"), rows)
    if role != "agent":
        wait_until(lambda: farm.holds(workers[role]) == 10, 20, "the worker to hold calls")
    else:
        wait_until(lambda: begun(journal, "step") == 10, 20, "rollouts in flight")
    # When one is told to end
    name = f"{role}{names.index(role) + 1}"
    began, told = time.monotonic(), time.time()
    workers[role].terminate()
    time.sleep(0.5)
    # Then it is seen as long as it works, ends well, and hands nothing back
    if role != "agent":
        assert answers(farm, name)
        assert workers[role].poll() is None
    children = psutil.Process(workers[role].pid).children(recursive=True) if workers[role].poll() is None else []
    assert workers[role].wait(15) == 0
    assert not any(running(child.pid) for child in children)
    beats = [event for event in heard.events if event["type"] == "worker-heartbeat" and event["hostname"].startswith(name)]
    if role != "agent":  # which has nothing to wait for: its steps are done at once
        assert time.monotonic() - began > 4
        assert sum(event["timestamp"] > told for event in beats) >= 2
    assert len(farm.registered()) == 2
    farm.start(role, model="scripted", environments="slow")
    found = farm.finish("drained", tmp_path / "out.jsonl")
    assert sum(call.get("attempt", 0) for record in found for call in record["calls"]) == 0
    assert {record["status"] for record in found} == {"completed"}


def start_isolated(farm, journal: Path, seconds: float, **options):
    resource = farm.start("resource", environments="guest")
    farm.start("agent")
    farm.start("model", model="scripted")
    executor = farm.start("executor", processes=2, **options)
    farm.wait_for(3)
    farm.produce(RunConfig("isolated", "guest", "tool", "scripted"), guest_rows(journal, 2, "rest", seconds))
    wait_until(lambda: begun(journal, "rest") == 2, 30, "two isolated calls at work")
    return resource, executor


@pytest.mark.slow
def test_an_executor_finishes_its_calls_and_is_seen_meanwhile(farm, tmp_path, no_leaks):
    # Given an executor with two calls, each with a child of its own
    journal = tmp_path / "journal"
    _, executor = start_isolated(farm, journal, 8)
    family = psutil.Process(executor.pid).children(recursive=True)
    assert len(family) >= 4
    # When it is told to end, then it answers while they run
    executor.terminate()
    time.sleep(0.5)
    assert answers(farm, "executor4")
    # and ends well with nobody left, and no call was run twice
    assert executor.wait(20) == 0
    wait_until(lambda: not any(running(process.pid) for process in family), 5, "its processes to be gone")
    found = farm.finish("isolated", tmp_path / "out.jsonl")
    assert {record["status"] for record in found} == {"completed"}
    assert begun(journal, "rest") == begun(journal, "rested") == 2


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["limit", *heavy("twice")])
def test_an_executor_kills_what_it_cannot_finish_and_another_does_it(farm, tmp_path, no_leaks, how):
    # Given an executor with two calls that take longer than it may drain
    journal = tmp_path / "journal"
    _, executor = start_isolated(farm, journal, 12, **({"drain_limit": 1} if how == "limit" else {}))
    family = psutil.Process(executor.pid).children(recursive=True)
    # When it is told to end
    executor.terminate()
    if how == "twice":
        time.sleep(0.5)
        executor.send_signal(signal.SIGTERM)
    # Then it does, soon and well, with nobody left
    assert executor.wait(10) == 0
    wait_until(lambda: not any(running(process.pid) for process in family), 5, "its processes to be gone")
    # and another does the calls
    farm.start("executor")
    found = farm.finish("isolated", tmp_path / "out.jsonl", 60)
    assert {record["status"] for record in found} == {"completed"}
    assert begun(journal, "rest") == 4 and begun(journal, "rested") == 2


@pytest.mark.slow
def test_a_resource_worker_hands_back_isolated_calls_and_they_are_not_run_twice(farm, tmp_path, no_leaks):
    # Given a resource worker that waits for two isolated calls
    journal = tmp_path / "journal"
    resource, _ = start_isolated(farm, journal, 10)
    # When it is told twice to end, then it does
    resource.terminate()
    time.sleep(0.5)
    assert resource.poll() is None
    resource.terminate()
    assert resource.wait(10) == 0
    # and another waits in its place for the same two processes
    farm.start("resource", environments="guest")
    found = farm.finish("isolated", tmp_path / "out.jsonl", 60)
    assert {record["status"] for record in found} == {"completed"}
    assert begun(journal, "rest") == begun(journal, "rested") == 2
