"""Processes die while they hold started calls: every sample still ends, once, and nothing fails for it."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest

from gymq.settings import Settings
from gymq.store.runs import RunConfig
from tests.support.farm import slow_rows
from tests.support.shard import keys
from tests.support.waiting import wait_until


@pytest.mark.chaos
def test_kill_9_of_one_of_each_role_and_of_the_sink_loses_nothing_and_doubles_nothing(farm, tmp_path, no_leaks):
    # Given two of each role and a thousand rollouts of two turns, two of whose calls are slow enough to be held
    journal, out = tmp_path / "journal", tmp_path / "out.jsonl"
    roles = {
        role: [farm.start(role, model="scripted", environments="slow") for _ in range(2)]
        for role in ("agent", "model", "resource")
    }
    farm.wait_for(6)
    script = [[["step", {"number": 1}]], [["look", {"number": 2}], ["look", {"number": 3}]], [["step", {"number": 4}]]]
    config = RunConfig("kills", "slow", "tool", "scripted", concurrency=200)
    rows = slow_rows(journal, 1000, script, seconds=0.02, latency=0.02)
    farm.produce(config, rows)
    sink = farm.sink("kills", out)
    wait_until(lambda: farm.status("kills").ended > 100, 60, "some rollouts")
    # When one of each role is killed while it holds started calls, and the sink while it has unacknowledged results
    held = {role: farm.kill_holding(processes[0]) for role, processes in roles.items()}
    sink.kill()
    sink.wait()
    assert farm.status("kills").ended < 1000
    farm.sink("kills", out)
    wait_until(lambda: farm.status("kills").state == "done", 120, "the run to be done")
    # Then every sample ended exactly once, in Redis before any dedupe and in the file
    end = farm.status("kills")
    assert end.ended == 1000
    assert end.by_status == {"completed": 1000}
    records = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert Counter(record["rollout_id"] for record in records) == Counter(f"kills.{i}.0" for i in range(1000))
    # and no turn stands twice in a transcript, and the state is that of two steps
    shape = ["user", "assistant", "tool", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert {tuple(m["role"] for m in record["messages"]) for record in records} == {tuple(shape)}
    assert {record["reward"] for record in records} == {2.0}
    # and what the victims held was delivered again, nothing else was
    again = sum(call.get("attempt", 0) for record in records for call in record["calls"])
    assert 1 <= again <= sum(held.values())
    runs = Counter(line.rsplit(" ", 1)[0] for line in journal.read_text().splitlines())
    repeated = sum(count - 1 for name, count in runs.items() if " step " in name)
    assert repeated <= held["resource"]


@pytest.mark.heavy
@pytest.mark.chaos
def test_a_long_call_runs_once_under_a_short_liveness_limit(farm, tmp_path, no_leaks):
    # Given a call of 12 s, and a limit of 1 s after which a silent worker counts as dead
    journal, out = tmp_path / "journal", tmp_path / "out.jsonl"
    for role in ("agent", "model", "resource", "resource"):
        farm.start(role, model="scripted", environments="slow")
    farm.wait_for(4)
    farm.produce(RunConfig("long", "slow", "tool", "scripted"), slow_rows(journal, 1, [[["step", {"number": 1}]]], seconds=12))
    farm.sink("long", out)
    # When it ends
    wait_until(lambda: farm.status("long").state == "done", 60, "the run to be done")
    # Then it ran once
    assert len(journal.read_text().splitlines()) == 1
    (record,) = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert record["status"] == "completed"
    assert sum(call.get("attempt", 0) for call in record["calls"]) == 0


@pytest.mark.slow
@pytest.mark.chaos
def test_a_dead_workers_call_restarts_within_ten_seconds_behind_a_backlog(farm, tmp_path):
    # Given the shipped limit, a worker that holds a call of 60 s, and a backlog of 10,000 calls behind it
    farm.settings = Settings(redis_url=farm.settings.redis_url)
    journal, out = tmp_path / "journal", tmp_path / "out.jsonl"
    farm.start("agent")
    farm.start("model", model="scripted", concurrency=2048)
    victim = farm.start("resource", environments="slow", concurrency=4)
    farm.wait_for(3)
    config = RunConfig("backlog", "slow", "tool", "scripted", concurrency=20_000)
    first = slow_rows(journal, 1, [[["step", {"number": 1}]]], seconds=60)
    rest = [{**row, "id": f"r{i}", "seconds": 0.2} for i, row in enumerate(first * 10_000)]
    farm.produce(config, first + rest)
    wait_until(lambda: farm.ask("XLEN", keys.mailbox("resource:slow")) >= 10_000, 120, "the backlog")
    wait_until(lambda: journal.exists() and "t0 step" in journal.read_text(), 60, "the long call to start")
    farm.start("resource", environments="slow", concurrency=2)
    farm.wait_for(4)
    time.sleep(farm.settings.liveness + 1)  # the others must have been connected for longer than the limit to judge
    # When the worker dies
    victim.kill()
    # Then another starts the call within ten seconds
    wait_until(lambda: journal.read_text().count("t0 step") == 2, 10, "the call to start again")
    assert out.exists() is False
