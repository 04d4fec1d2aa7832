"""A rolling upgrade: workers of two versions, a schema apart, side by side at one run."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from gymq.ops.status import overview
from gymq.store.runs import RunConfig
from tests.support import rollouts
from tests.support.farm import records, slow_rows
from tests.support.shard import keys
from tests.support.waiting import wait_until

pytestmark = pytest.mark.chaos

ROLES = ("agent", "model", "resource")
SCRIPT = [[["step", {"number": 1}]], [["look", {"number": 2}], ["look", {"number": 3}]], [["step", {"number": 4}]]]


def start(farm, newer: bool) -> dict:
    return {role: farm.start(role, newer=newer, model="scripted", environments="slow") for role in ROLES}


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*.log"))


def parked(farm) -> int:
    return sum(farm.ask("XLEN", keys.newer(box)) for box in ("agent", "model:scripted", "resource:slow"))


def commands(farm) -> int:
    info = farm.ask("INFO", "stats").decode()
    return int(info.partition("total_commands_processed:")[2].split()[0])


@pytest.mark.slow
def test_old_and_new_workers_side_by_side_lose_nothing_and_double_nothing(farm, tmp_path, no_leaks):
    # Given old workers at a run
    journal, out = tmp_path / "journal", tmp_path / "out.jsonl"
    old = start(farm, newer=False)
    farm.wait_for(3)
    config = RunConfig("upgrade", "slow", "tool", "scripted", samples=2, concurrency=30)
    farm.produce(config, slow_rows(journal, 300, SCRIPT, seconds=0.2, latency=0.2))
    farm.sink("upgrade", out)
    wait_until(lambda: farm.status("upgrade").ended > 30, 60, "some rollouts")
    # When new ones come, one of which dies while it holds mail and comes again, and the old ones are told to end
    new = start(farm, newer=True)
    farm.wait_for(6)
    ended = farm.status("upgrade").ended
    wait_until(lambda: farm.status("upgrade").ended > ended + 20, 60, "some more")
    held = farm.kill_holding(new["resource"])
    farm.start("resource", newer=True, environments="slow")
    farm.wait_for(6)
    for process in old.values():
        process.send_signal(signal.SIGTERM)
    assert [process.wait(40) for process in old.values()] == [0, 0, 0]
    assert farm.status("upgrade").ended < 600
    wait_until(lambda: farm.status("upgrade").state == "done", 120, "the run to be done")
    # Then every rollout ended once, as it should, and only what the dead one held was run again
    found = records(out)
    assert Counter(record["rollout_id"] for record in found) == Counter(f"upgrade.{i}.{n}" for i in range(300) for n in (0, 1))
    assert farm.status("upgrade").by_status == {"completed": 600}
    assert {record["reward"] for record in found} == {2.0}
    assert sum(call.get("attempt", 0) for record in found for call in record["calls"]) <= held
    # and the old ones met mail that they could not read, said so once each, and let it be
    said = [line for line in logs(tmp_path).splitlines() if "mail of a newer schema (2; this worker reads up to 1)" in line]
    assert 1 <= len(said) <= 3
    assert "is no call" not in logs(tmp_path) and "Traceback" not in logs(tmp_path)
    assert parked(farm) == 0


@pytest.mark.heavy
def test_mail_of_a_newer_schema_waits_quietly_while_only_old_workers_are_up(farm, tmp_path, no_leaks):
    # Given a run that new workers began, and that only old ones are left with
    journal, out = tmp_path / "journal", tmp_path / "out.jsonl"
    new = start(farm, newer=True)
    farm.wait_for(3)
    farm.produce(
        RunConfig("left", "slow", "tool", "scripted", concurrency=40), slow_rows(journal, 40, SCRIPT, seconds=0.5, latency=0.5)
    )
    wait_until(lambda: farm.status("left").live == 40, 20, "rollouts in flight")
    time.sleep(1)
    for process in new.values():
        process.kill()
        process.wait()
    start(farm, newer=False)
    # When they find its mail, then they put it aside, and go on with a run of their own
    wait_until(lambda: parked(farm) == 40, 30, "mail to be put aside")
    farm.produce(RunConfig("own", "slow", "tool", "scripted"), slow_rows(journal, 10, SCRIPT))
    assert {record["status"] for record in farm.finish("own", tmp_path / "own.jsonl")} == {"completed"}
    # and do not look at it again and again, and `gymq status` tells
    before = commands(farm)
    time.sleep(3)
    assert commands(farm) - before < 300
    warnings = rollouts.with_shards(farm.settings, overview).warnings
    assert any("of a newer schema wait for" in warning and "start newer workers" in warning for warning in warnings)
    # When new ones are started again, then nothing was lost
    start(farm, newer=True)
    found = farm.finish("left", out, 60)
    assert Counter(record["rollout_id"] for record in found) == Counter(f"left.{i}.0" for i in range(40))
    assert {(record["status"], record["reward"]) for record in found} == {("completed", 2.0)}
