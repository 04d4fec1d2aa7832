"""Processes that stand still for a while, shorter than the liveness: what they have in hand loses nothing by it."""

from __future__ import annotations

import time

import msgspec
import psutil
import pytest

from gymq.store.runs import RunConfig
from tests.support.farm import Farm
from tests.support.waiting import wait_until

#: Seconds of a stall: longer than the tools' limit of one, shorter than the liveness.
STALL = 1.5


@pytest.mark.slow
def test_a_worker_that_stood_still_cuts_off_no_call_for_it(spawn, settings, tmp_path, monkeypatch, farm, no_leaks):
    # Given a tool of each kind, on a resource worker's loop and in an executor, each with a limit of one second
    farm = Farm(spawn, msgspec.structs.replace(settings, liveness=5.0), tmp_path)
    resource = farm.start_roles("brief")["resource"][0]
    executor = farm.start("executor", processes=1)
    journal = tmp_path / "journal"
    rows = [{"id": tool, "prompt": "go", "calls": [tool], "journal": str(journal)} for tool in ("nap", "doze")]
    farm.produce(RunConfig("still", "brief", "tool", "scripted", concurrency=1), rows)
    for tool, worker in (("nap", resource), ("doze", executor)):
        wait_until(lambda tool=tool: journal.exists() and tool in journal.read_text(), 20, tool)
        # When the worker's processes stand still while it is at work
        first = psutil.Process(worker.pid)
        first.suspend()
        family = [first, *first.children(recursive=True)]
        for process in family:
            process.suspend()
        time.sleep(STALL)
        for process in family:
            process.resume()
    # Then each call is done, and was begun once
    rollouts = farm.finish("still", tmp_path / "out.jsonl")
    said = {
        rollout["task_id"]: [call.get("fault") for call in rollout["calls"] if call["kind"] == "tool"] for rollout in rollouts
    }
    assert said == {"nap": [None], "doze": [None]}
    assert [rollout["messages"][2]["content"] for rollout in rollouts] == ["up"] * 2
    assert sorted(journal.read_text().split()) == ["doze", "nap"]
