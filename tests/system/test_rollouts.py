"""Whole rollouts through real workers: what users' environments do well and badly, and what operators do meanwhile."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from gymq.store.runs import RunConfig
from tests.support.farm import records, slow_rows
from tests.support.waiting import wait_until

ENVIRONMENTS = Path(__file__).parents[2] / "environments"


def test_two_resource_workers_serve_one_stateful_rollout(farm, tmp_path, no_leaks):
    # Given rollouts of several steps each, and two resource workers that share the mailbox
    farm.start_roles("slow", resources=2)
    journal = tmp_path / "journal"
    script = [[["step", {"number": i}]] for i in range(6)]
    # When they run
    farm.produce(RunConfig("shared", "slow", "tool", "scripted"), slow_rows(journal, 20, script))
    rollouts = farm.finish("shared", tmp_path / "out.jsonl")
    # Then each kept its state, although both workers served some of them
    assert {rollout["reward"] for rollout in rollouts} == {6.0}
    served = {
        rollout["rollout_id"]: {call["worker"] for call in rollout["calls"] if call["kind"] == "tool"} for rollout in rollouts
    }
    assert max(len(workers) for workers in served.values()) == 2


@pytest.mark.slow
def test_two_resource_workers_serve_one_rollout_of_the_counter(farm, tmp_path, no_leaks):
    # Given the counter's own rows, each eight times, and two resource workers that share its mailbox
    farm.start_roles("counter", resources=2)
    rows = [json.loads(line) for line in (ENVIRONMENTS / "counter/data/train.jsonl").read_text().splitlines()]
    # When they run
    farm.produce(RunConfig("counted", "counter", "tool", "scripted", samples=8), rows)
    rollouts = farm.finish("counted", tmp_path / "out.jsonl")
    # Then every count is right, although rollouts went from one worker to the other
    assert len(rollouts) == 8 * len(rows)
    assert {rollout["reward"] for rollout in rollouts} == {1.0}
    served = [{call["worker"] for call in rollout["calls"] if call["kind"] == "tool"} for rollout in rollouts]
    assert max(map(len, served)) == 2


@pytest.mark.slow
def test_read_only_calls_of_a_turn_run_together_and_writing_ones_one_after_another(farm, tmp_path, no_leaks):
    # Given a turn with two looks, a step, and two looks, of 0.3 s each
    farm.start_roles("slow")
    turn = [
        ["look", {"number": 1}],
        ["look", {"number": 2}],
        ["step", {"number": 3}],
        ["look", {"number": 4}],
        ["look", {"number": 5}],
    ]
    # When it runs
    farm.produce(RunConfig("order", "slow", "tool", "scripted"), slow_rows(tmp_path / "journal", 1, [turn], seconds=0.3))
    (rollout,) = farm.finish("order", tmp_path / "out.jsonl")
    # Then neighbours that only read overlapped, the writer overlapped nothing, and results stand in the calls' order
    tools = [call for call in rollout["calls"] if call["kind"] == "tool"]
    first, second, write, fourth, fifth = sorted(tools, key=lambda call: call["queued"])
    assert first["started"] < second["finished"] and second["started"] < first["finished"]
    assert write["started"] >= max(first["finished"], second["finished"])
    assert min(fourth["started"], fifth["started"]) >= write["finished"]
    results = [message["content"] for message in rollout["messages"] if message["role"] == "tool"]
    assert results == ["saw 1", "saw 2", "step 3 done, 1 in all", "saw 4", "saw 5"]


FAULTS = {
    "open": ("failed", "environment", "KeyError: 'secret'"),
    "tool": ("failed", "environment", "RuntimeError: the tool broke"),
    "respond": ("failed", "environment", "RuntimeError: nothing to say"),
    "verify": ("completed", None, "verifier: ZeroDivisionError: no reward"),
    "nan": ("completed", None, "must be finite"),
    "text": ("completed", None, "not a number"),
    "policy": ("failed", "model", "RuntimeError: the model broke"),
    "close": ("completed", None, ""),
    "none": ("completed", None, "the verifier gave no reward"),
}


@pytest.mark.slow
def test_what_an_environment_raises_fails_its_rollout_with_one_line_and_nobody_elses(farm, tmp_path, no_leaks):
    # Given one task for each place where an environment can raise, and one that is fine
    farm.start_roles("faulty")
    rows = [{"id": where, "prompt": "go", "raise": where} for where in [*FAULTS, "nowhere"]]
    # When they run
    farm.produce(RunConfig("faults", "faulty", "tool", "scripted"), rows)
    rollouts = {rollout["task_id"]: rollout for rollout in farm.finish("faults", tmp_path / "out.jsonl")}
    # Then each ended as it should, with the reason
    for where, (status, kind, text) in FAULTS.items():
        rollout = rollouts[where]
        assert rollout["status"] == status, where
        if kind is None:
            assert rollout["error"] is None
            assert text in (rollout["no_reward"] or "")
            assert (rollout["reward"] is None) == (where != "close")
            continue
        assert rollout["error"]["kind"] == kind, where
        assert text in rollout["error"]["message"]
        assert "\n" not in rollout["error"]["message"]
        assert rollout["reward"] is None
    assert rollouts["nowhere"]["reward"] == 1.0
    # and a verifier that gave no reward gave none, not 0
    assert rollouts["none"]["reward"] is None


@pytest.mark.slow
def test_the_models_own_faults_go_back_to_the_model(farm, tmp_path, no_leaks):
    # Given models that call a tool that does not exist, `verify`, and a tool with arguments that are no JSON
    farm.start_roles("faulty")
    calls = {
        "missing": ("fly", "{}"),
        "verifier": ("verify", "{}"),
        "broken": ("act", "{oops"),
        "extra": ("act", '{"speed": 1}'),
    }
    rows = [{"id": name, "prompt": "go", "tool": tool, "arguments": text} for name, (tool, text) in calls.items()]
    # When they run
    farm.produce(RunConfig("mistakes", "faulty", "tool", "scripted"), rows)
    rollouts = {rollout["task_id"]: rollout for rollout in farm.finish("mistakes", tmp_path / "out.jsonl")}
    # Then the model was told, and the rollout went on
    said = {name: next(m["content"] for m in r["messages"] if m["role"] == "tool") for name, r in rollouts.items()}
    assert {rollout["status"] for rollout in rollouts.values()} == {"completed"}
    assert "no tool 'fly'" in said["missing"] and "no tool 'verify'" in said["verifier"]
    assert "Invalid arguments for act" in said["broken"] and "speed" in said["extra"]


@pytest.mark.slow
def test_turns_are_bounded_whatever_the_agent_wants(farm, tmp_path, no_leaks):
    # Given an agent that always asks the model again
    farm.start_roles("faulty")
    # When it runs with at most four turns
    config = RunConfig("bounded", "faulty", "stubborn", "scripted", max_turns=4)
    farm.produce(config, [{"prompt": "go"}])
    (rollout,) = farm.finish("bounded", tmp_path / "out.jsonl")
    # Then it is truncated, keeps its turns, and was scored
    assert (rollout["status"], rollout["stop"], rollout["turns"]) == ("truncated", "max_turns", 4)
    assert rollout["reward"] == 1.0


def test_cancelling_ends_what_is_in_flight_and_starts_nothing_more(farm, tmp_path, no_leaks):
    # Given a run of slow rollouts of which some are in flight
    farm.start_roles("slow")
    rows = slow_rows(tmp_path / "journal", 50, [[["step", {"number": 1}]]], latency=30)
    farm.produce(RunConfig("stopped", "slow", "tool", "scripted", concurrency=10), rows)
    wait_until(lambda: farm.status("stopped").live == 10, 20, "rollouts in flight")
    # When it is cancelled
    farm.cancel("stopped")
    rollouts = farm.finish("stopped", tmp_path / "out.jsonl", 20)
    # Then those in flight ended cancelled, and no others began
    assert len(rollouts) == 10
    assert {rollout["status"] for rollout in rollouts} == {"cancelled"}
    assert {rollout["error"]["kind"] for rollout in rollouts} == {"cancelled"}


def test_a_worker_that_is_told_to_end_finishes_what_it_holds_and_leaves(farm, tmp_path, no_leaks):
    # Given two of each role at work
    roles = farm.start_roles("slow", 2, 2, 2)
    rows = slow_rows(
        tmp_path / "journal", 200, [[["step", {"number": 1}]], [["step", {"number": 2}]]], seconds=0.1, latency=0.1
    )
    farm.produce(RunConfig("drained", "slow", "tool", "scripted", concurrency=40), rows)
    wait_until(lambda: farm.status("drained").ended > 20, 60, "some rollouts")
    # When one of each is told to end
    leaving = [processes[0] for processes in roles.values()]
    for process in leaving:
        os.kill(process.pid, signal.SIGTERM)
    # Then each ends by itself with exit code 0, and nothing was run again
    assert [process.wait(30) for process in leaving] == [0, 0, 0]
    rollouts = farm.finish("drained", tmp_path / "out.jsonl")
    assert Counter(rollout["status"] for rollout in rollouts) == {"completed": 200}
    assert sum(call.get("attempt", 0) for rollout in rollouts for call in rollout["calls"]) == 0
    assert len(farm.registered()) == 3


def test_a_payment_is_not_made_twice_when_its_worker_dies(farm, tmp_path, no_leaks):
    # Given a tool that must not be repeated, in the hands of a worker
    roles = farm.start_roles("slow", resources=1)
    journal = tmp_path / "journal"
    farm.produce(RunConfig("paid", "slow", "tool", "scripted"), slow_rows(journal, 1, [[["pay", {}]]], seconds=30))
    wait_until(lambda: journal.exists() and "pay" in journal.read_text(), 20, "the payment to begin")
    # When the worker dies
    roles["resource"][0].kill()
    farm.start("resource", environments="slow")
    (rollout,) = farm.finish("paid", tmp_path / "out.jsonl")
    # Then it was made once, and the model was told that the outcome is unknown
    assert journal.read_text().count("pay") == 1
    assert "outcome of this call is unknown" in next(m["content"] for m in rollout["messages"] if m["role"] == "tool")


def test_a_frozen_worker_is_dead_and_changes_nothing_when_it_wakes(farm, tmp_path, no_leaks):
    # Given a worker that holds calls
    roles = farm.start_roles("slow", resources=2)
    journal = tmp_path / "journal"
    rows = slow_rows(journal, 40, [[["step", {"number": 1}]], [["step", {"number": 2}]]], seconds=0.5)
    farm.produce(RunConfig("frozen", "slow", "tool", "scripted"), rows)
    victim = roles["resource"][0]
    wait_until(lambda: farm.holds(victim) > 0, 20, "the victim to hold calls")
    # When it freezes for longer than the limit, and wakes
    os.kill(victim.pid, signal.SIGSTOP)
    out = tmp_path / "out.jsonl"
    farm.sink("frozen", out)
    wait_until(lambda: farm.status("frozen").ended == 40, 60, "the others to do its work")
    os.kill(victim.pid, signal.SIGCONT)
    time.sleep(2)
    # Then every rollout ended once with two steps, and the worker is back under a new name
    rollouts = records(out)
    assert Counter(rollout["rollout_id"] for rollout in rollouts) == Counter(f"frozen.{i}.0" for i in range(40))
    assert {rollout["reward"] for rollout in rollouts} == {2.0}
    assert len([info for info in farm.registered().values() if info["pid"] == victim.pid]) == 1


@pytest.mark.slow
def test_a_rollout_that_nobody_installed_the_agent_for_fails_and_says_so(farm, tmp_path, no_leaks):
    farm.start_roles("faulty")
    farm.produce(RunConfig("nobody", "faulty", "nobody", "scripted"), [{"prompt": "go"}])
    (rollout,) = farm.finish("nobody", tmp_path / "out.jsonl")
    assert rollout["error"]["kind"] == "agent"
    assert "unknown agent 'nobody'" in rollout["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_large_messages_are_loaded_instead_of_travelling(farm, tmp_path, no_leaks, size):
    # Given a task whose prompt and fields do not fit into a call
    farm.start_roles("slow")
    rows = slow_rows(tmp_path / "journal", 2, [[["step", {"number": 1}]]], blob="x" * size)
    rows = [{**row, "prompt": "y" * size} for row in rows]
    # When it runs
    farm.produce(RunConfig("large", "slow", "tool", "scripted"), rows)
    rollouts = farm.finish("large", tmp_path / "out.jsonl")
    # Then it is whole
    assert {rollout["status"] for rollout in rollouts} == {"completed"}
    assert {len(rollout["messages"][0]["content"]) for rollout in rollouts} == {size}
    assert {len(rollout["task"]["blob"]) for rollout in rollouts} == {size}
