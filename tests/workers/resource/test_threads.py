"""Tools that hang where they cannot be killed: in a resource worker's threads, and on its loop."""

from __future__ import annotations

import subprocess
import time

import pytest

from gymq.store.runs import RunConfig
from tests.support.waiting import wait_until


def rows(count: int, call: str, **fields) -> list[dict]:
    return [{"id": f"{call}{i}", "prompt": "go", "calls": [call], **fields} for i in range(count)]


def log(folder, name: str) -> str:
    return (folder / f"{name}.log").read_text()


def test_a_worker_whose_threads_hang_says_which_tool_it_was_and_makes_room_for_another(farm, tmp_path):
    # Given a resource worker
    farm.start("agent")
    farm.start("model", model="scripted")
    resource = farm.start("resource", environments="sticky")
    farm.wait_for(3)
    # When half of its threads hang
    farm.produce(RunConfig("stuck", "sticky", "tool", "scripted", concurrency=64), rows(8, "hang") + rows(20, "rest"))
    # Then it ends, and has said why
    assert resource.wait(60) == 1
    said = log(tmp_path, "resource3")
    assert "8 of 16 threads hang in sticky.hang" in said
    assert "isolated=True" in said
    assert "Traceback" not in said
    # And another takes its place; no call was lost
    farm.start("resource", environments="sticky")
    records = farm.finish("stuck", tmp_path / "out.jsonl", 60)
    assert {r["error"]["kind"] for r in records if r["task_id"].startswith("hang")} == {"timeout"}
    assert {r["status"] for r in records if r["task_id"].startswith("rest")} == {"completed"}
    assert len(records) == 28


@pytest.mark.slow
def test_a_stalled_loop_names_the_tool_and_its_mail_goes_elsewhere(farm, tmp_path):
    # Given a worker in which an async tool blocks longer than the liveness
    farm.start("agent")
    farm.start("model", model="scripted")
    first = farm.start("resource", environments="sticky")
    farm.wait_for(3)
    journal = tmp_path / "journal"
    stalls = rows(1, "stall", seconds=8, journal=str(journal))
    farm.produce(RunConfig("stalled", "sticky", "tool", "scripted"), stalls)
    wait_until(journal.exists, 20, "the stall")
    began = time.monotonic()
    # When another is there
    farm.start("resource", environments="sticky")
    # Then the first has said which tool it is, in time
    wait_until(lambda: "sticky.stall blocks the loop" in log(tmp_path, "resource3"), 6)
    line = next(line for line in log(tmp_path, "resource3").splitlines() if "blocks the loop" in line)
    assert "gymq_test_plugin.py" in line
    assert "isolated=True" in line
    # And the call is run by the other, which counts, while the first is still at it
    wait_until(lambda: len(journal.read_text().splitlines()) >= 2, 30, "the second try")
    (record,) = farm.finish("stalled", tmp_path / "out.jsonl", 60)
    assert (record["status"], record["reward"]) == ("completed", 1.0)
    assert time.monotonic() - began < 60
    # And the first is well again
    assert first.poll() is None
    farm.produce(RunConfig("after", "sticky", "tool", "scripted"), rows(4, "rest"))
    assert {r["status"] for r in farm.finish("after", tmp_path / "after.jsonl", 60)} == {"completed"}


@pytest.mark.heavy
def test_a_result_of_a_gigabyte_ends_as_a_typed_fault(farm, tmp_path):
    farm.start("agent")
    farm.start("model", model="scripted")
    resource: subprocess.Popen[bytes] = farm.start("resource", environments="sticky")
    farm.wait_for(3)
    farm.produce(RunConfig("large", "sticky", "tool", "scripted"), rows(1, "give") + rows(4, "rest"))
    records = {r["task_id"]: r for r in farm.finish("large", tmp_path / "out.jsonl", 60)}
    assert records.pop("give0")["error"]["kind"] == "result_too_large"
    assert {r["status"] for r in records.values()} == {"completed"}
    assert resource.poll() is None
