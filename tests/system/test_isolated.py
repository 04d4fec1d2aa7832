"""Isolated tools and verifiers, from the model's call to the finished rollout, while they spin, crash and hoard."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from gymq.store.runs import RunConfig
from tests.support.celery_listener import CeleryListener
from tests.support.rollouts import status
from tests.support.waiting import wait_until


def start(farm, executors: int = 1, processes: int = 2):
    """Start workers; returns the executors."""
    farm.start("agent")
    farm.start("model", model="scripted")
    farm.start("resource", environments="hostile,weather")
    farm.wait_for(3)
    return [farm.start("executor", processes=processes) for _ in range(executors)]


@pytest.mark.slow
def test_a_call_whose_process_is_killed_from_outside_is_done_again_and_the_model_hears_nothing(farm, tmp_path, no_leaks):
    # Given a tool and a verifier at work in an executor
    farm.start_roles("patient_apart")
    executor = farm.start("executor", processes=1)
    journal = tmp_path / "journal"
    rows = [{"id": "t", "prompt": "go", "calls": ["noted"], "journal": str(journal)}]
    farm.produce(RunConfig("killed", "patient_apart", "tool", "scripted"), rows)
    for what in ("noted", "verify"):
        wait_until(lambda what=what: journal.exists() and what in journal.read_text(), 20, what)
        # When their process is killed by the kernel for lack of memory, say
        pid = int(journal.read_text().split()[-1])
        os.kill(pid, signal.SIGKILL)
    # Then both are done again
    (rollout,) = farm.finish("killed", tmp_path / "out.jsonl")
    assert (rollout["status"], rollout["reward"]) == ("completed", 1.0)
    ends = [
        (call["kind"], call.get("fault", {}).get("kind")) for call in rollout["calls"] if call["kind"] in ("tool", "verify")
    ]
    assert ends == [("tool", "interrupted"), ("tool", None), ("verify", "interrupted"), ("verify", None)]
    assert [message["content"] for message in rollout["messages"] if message["role"] == "tool"] == ["noted"]
    assert executor.poll() is None


@pytest.mark.slow
def test_hostile_tools_end_as_their_calls_error_and_disturb_nobody(farm, tmp_path, no_leaks):
    # Given tools that spin, leave and hoard, beside ones that behave
    start(farm)
    rows = [{"id": "hostile", "prompt": "go", "calls": ["spin", "leave", "hoard", "pid"]}]
    rows += [{"id": f"calm{i}", "prompt": "go", "calls": ["pid"]} for i in range(10)]
    rows += [{"id": f"w{i}", "environment": "weather", "prompt": f"What is the weather in city{i}?"} for i in range(100)]
    # When they run
    farm.produce(RunConfig("hostile", "hostile", "tool", "scripted"), rows)
    rollouts = {rollout["task_id"]: rollout for rollout in farm.finish("hostile", tmp_path / "out.jsonl", 90)}
    # Then each ended as that call's typed error, which the model was told, and the rollout went on
    rollout = rollouts["hostile"]
    assert rollout["status"] == "completed"
    tools = [call for call in rollout["calls"] if call["kind"] == "tool"]
    assert [call.get("fault", {}).get("kind") for call in tools] == ["timeout", "killed", "memory", None]
    told = [message["content"] for message in rollout["messages"] if message["role"] == "tool"]
    assert all(text.startswith("Error: ") for text in told[:3])
    assert re.fullmatch(r"\d+", told[3])
    # and all others are as if nothing had happened
    assert {r["status"] for r in rollouts.values()} == {"completed"}
    assert {r["reward"] for r in rollouts.values()} == {1.0}
    weather = [r["finished_at"] - r["started_at"] for name, r in rollouts.items() if name.startswith("w")]
    assert len(weather) == 100


def test_an_isolated_tool_is_a_celery_task_in_a_process_of_its_own(farm, tmp_path, no_leaks):
    # Given somebody who listens to Celery's events
    heard = CeleryListener(farm.settings.redis_url)
    (executor,) = start(farm)
    # When a tool says in which process it runs
    farm.produce(RunConfig("seen", "hostile", "tool", "scripted"), [{"id": "one", "prompt": "go", "calls": ["pid"]}])
    (rollout,) = farm.finish("seen", tmp_path / "out.jsonl")
    pid = int(next(message["content"] for message in rollout["messages"] if message["role"] == "tool"))
    call = next(call for call in rollout["calls"] if call["kind"] == "tool")
    # Then the task has the call's id, succeeded, and ran in a child of the executor
    incarnation = status(farm.settings, "seen").config.incarnation
    uuid = f"{rollout['rollout_id']}~{incarnation}:{call['call'].replace('.', ':')}"
    wait_until(lambda: {event["type"] for event in heard.of(uuid)} >= {"task-received", "task-started", "task-succeeded"}, 10)
    received = next(event for event in heard.of(uuid) if event["type"] == "task-received")
    assert received["name"] == "gymq.isolated"
    started = next(event for event in heard.of(uuid) if event["type"] == "task-started")
    assert started["pid"] == executor.pid != pid


@pytest.mark.slow
def test_a_verifier_that_spins_leaves_its_rollout_without_a_reward(farm, tmp_path, no_leaks):
    start(farm)
    farm.produce(RunConfig("spun", "hostile", "tool", "scripted"), [{"prompt": "go", "calls": [], "spin": True}])
    (rollout,) = farm.finish("spun", tmp_path / "out.jsonl")
    assert (rollout["status"], rollout["reward"], rollout["error"]) == ("completed", None, None)
    assert rollout["no_reward"].startswith("timeout: ")


@pytest.mark.slow
def test_an_isolated_call_outlives_its_executor(farm, tmp_path, no_leaks):
    # Given an executor that is killed, with its children, while it works on a call
    (victim,) = start(farm)
    farm.produce(RunConfig("moved", "hostile", "tool", "scripted"), [{"prompt": "go", "calls": ["nap"]}])
    wait_until(lambda: farm.ask("HLEN", "gymq:{0}:isolated") == 1, 20, "the call to begin")
    farm.kill_group(victim)
    died = time.monotonic()
    farm.start("executor", processes=2)
    # When another is there
    (rollout,) = farm.finish("moved", tmp_path / "out.jsonl")
    # Then it has done the call
    assert rollout["status"] == "completed"
    assert next(message["content"] for message in rollout["messages"] if message["role"] == "tool") == "rested"
    assert time.monotonic() - died < 20


@pytest.mark.heavy
def test_after_an_outage_of_redis_a_call_that_runs_is_not_run_again(farm, redis_server, tmp_path, no_leaks):
    # Given a call that runs, noted by whoever runs it, and a second executor with nothing to do
    start(farm, executors=2)
    journal = tmp_path / "journal"
    row = {"prompt": "go", "calls": ["noted"], "journal": str(journal), "seconds": 20}
    farm.produce(RunConfig("outage", "hostile", "tool", "scripted"), [row])
    wait_until(journal.exists, 30, "the call to begin")
    # When Redis is away for far longer than the liveness
    redis_server.stop()
    time.sleep(8)
    redis_server.start()
    # Then the call ends well, and nobody else has run it
    (rollout,) = farm.finish("outage", tmp_path / "out.jsonl", 90)
    assert rollout["status"] == "completed"
    assert len(journal.read_text().splitlines()) == 1
