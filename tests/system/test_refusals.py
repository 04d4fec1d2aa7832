"""Refusals of Redis that pass: no process ends over them, no rollout fails, and no mail counts a death."""

from __future__ import annotations

import time

import pytest

from gymq.store.runs import RunConfig
from tests.support.farm import guest_rows, slow_rows
from tests.support.shard import keys
from tests.support.waiting import wait_until


@pytest.mark.slow
def test_a_server_that_lacks_replicas_for_a_while_costs_no_process_and_no_death(farm, tmp_path, no_leaks):
    # Given workers of all roles and a sink, with rollouts in flight
    processes = [process for started in farm.start_roles("slow,guest").values() for process in started]
    processes.append(farm.start("executor"))
    config = RunConfig("refused", "slow", "tool", "scripted", concurrency=20)
    journal = tmp_path / "journal"
    tasks = [row | {"id": f"g{i}"} for i, row in enumerate(guest_rows(journal, 2, "rest", 1.0))]
    tasks += slow_rows(journal, 20, [[["step", {"number": turn}]] for turn in range(8)], seconds=0.3)
    farm.produce(config, tasks)
    sink = farm.sink("refused", tmp_path / "out.jsonl")
    wait_until(journal.exists, 20, "the first tool")
    wait_until(lambda: "ready" in (tmp_path / "sink.log").read_text(), 20, "the sink")
    # When the server takes no writes, twice, as while a replica restarts
    for _ in range(2):
        farm.ask("CONFIG", "SET", "min-replicas-to-write", "1")
        time.sleep(1.5)
        assert [process.poll() for process in (*processes, sink)] == [None] * 5
        farm.ask("CONFIG", "SET", "min-replicas-to-write", "0")
        time.sleep(0.5)
    # Then all rollouts end well, in one try of each call, and all processes are there
    wait_until(lambda: farm.status("refused").state == "done", 40, "the run's end")
    assert farm.status("refused").by_status == {"completed": 22}
    assert [process.poll() for process in processes] == [None] * 4
    assert sink.wait(20) == 0
    assert not farm.ask("XLEN", keys.suspects("resource:slow"))
    # and each process tells the outage, once each time, and nothing else; an executor has two children
    for log in tmp_path.glob("*[0-9].log"):
        writers = 3 if log.name.startswith("executor") else 1
        lines = [line for line in log.read_text().splitlines() if " WARNING " in line or " CRITICAL " in line]
        assert lines and all("outage of shard 0" in line for line in lines), lines
        assert len(lines) <= 4 * writers, lines
