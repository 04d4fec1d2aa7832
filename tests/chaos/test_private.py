"""Rollouts that live with one worker: they stay there, leave it when it is dead, drains or is too slow, and lose nothing."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from gymq_workers.invocation.sessions import ORPHAN_CHECK_AFTER

from gymq.store.runs import RunConfig
from tests.support.farm import records
from tests.support.shard import keys
from tests.support.waiting import wait_until

#: The kinds of calls that ask for the session, besides the tools `go` and `look`.
ASKING = ("open", "verify", "close")


def walks(folder: Path, count: int, turns: int = 6, seconds: float = 0.01, latency: float = 0.01) -> list[dict[str, Any]]:
    """Rows of `walk`."""
    row = {"prompt": "go", "journal": str(folder / "journal"), "turns": turns, "seconds": seconds, "latency": latency}
    return [{"id": f"t{i}", "seed": i, **row} for i in range(count)]


def served(found: list[dict[str, Any]], *kinds: str) -> list[list[str]]:
    """For each rollout, who served its calls of some kinds (of tools: those that ask for the session), in their order."""
    order = [sorted(one["calls"], key=lambda call: tuple(map(int, call["call"].split(".")))) for one in found]
    return [[c["worker"] for c in calls if c["kind"] in kinds and c.get("name") != "rest"] for calls in order]


def moves(chains: list[list[str]]) -> tuple[int, int]:
    """How many calls were served by somebody else than the call before, and how many were not the first."""
    return (
        sum(a != b for chain in chains for a, b in itertools.pairwise(chain)),
        sum(len(chain) - 1 for chain in chains),
    )


def made(folder: Path) -> Counter[str]:
    """What the journal says: how often sessions were made and closed."""
    return Counter(line.split()[1] for line in (folder / "journal").read_text().splitlines())


def all_is_well(found: list[dict[str, Any]], run: str, rows: int, samples: int = 1) -> None:
    """Every rollout ended once, well, and saw what a walk of its own would have seen."""
    assert Counter(one["rollout_id"] for one in found) == Counter(f"{run}.{i}.{n}" for i in range(rows) for n in range(samples))
    assert Counter(one["status"] for one in found) == {"completed": rows * samples}
    assert {one["reward"] for one in found} == {1.0}


@pytest.mark.slow
@pytest.mark.chaos
def test_kill_9_of_owners_moves_their_rollouts_and_loses_and_doubles_nothing(farm, tmp_path, no_leaks):
    # Given replicas that conversations stay with, workers with live sessions, and rollouts under way
    out = tmp_path / "out.jsonl"
    models = [farm.start("model", model="homely") for _ in range(3)]
    resources = [farm.start("resource", environments="walk") for _ in range(3)]
    for _ in range(2):
        farm.start("agent")
    farm.wait_for(8)
    farm.produce(RunConfig("kills", "walk", "tool", "homely", concurrency=60), walks(tmp_path, 300))
    farm.sink("kills", out)
    wait_until(lambda: farm.status("kills").ended > 30, 60, "some rollouts")
    # When an owner of each kind dies, and a second one a while later
    held = farm.kill_holding(models[0]) + farm.kill_holding(resources[0])
    wait_until(lambda: farm.status("kills").ended > 150, 60, "half of the rollouts")
    held += farm.kill_holding(resources[1])
    wait_until(lambda: farm.status("kills").state == "done", 120, "the run to be done")
    # Then nothing is lost or doubled, nobody has failed, and sessions were never ahead of their rollout or behind it
    found = records(out)
    all_is_well(found, "kills", 300)
    # and only what the dead held was delivered again
    assert 1 <= sum(call.get("attempt", 0) for one in found for call in one["calls"]) <= held
    # and sessions moved for the deaths, and for nothing else (on a busy machine a worker may look dead for a moment)
    moved, calls = moves(served(found, "tool", *ASKING))
    assert 1 <= moved <= calls / 10
    # and none was made but for a move or a call that was delivered again
    assert made(tmp_path)["made"] <= 300 + moved + held
    # (conversations also for load: all that waits for a death comes back at once)
    moved, calls = moves(served(found, "generate"))
    assert 1 <= moved <= calls / 2
    # and of the dead nothing is left but what the judges have yet to see
    assert farm.ask("HLEN", keys.private) == 3


@pytest.mark.slow
@pytest.mark.chaos
def test_owners_that_drain_give_their_rollouts_away_at_once(farm, tmp_path, no_leaks):
    out = tmp_path / "out.jsonl"
    models = [farm.start("model", model="homely") for _ in range(2)]
    resources = [farm.start("resource", environments="walk") for _ in range(2)]
    farm.start("agent")
    farm.wait_for(5)
    rows = walks(tmp_path, 200, seconds=0.05, latency=0.1)  # so slow that many are under way when two workers drain
    farm.produce(RunConfig("drains", "walk", "tool", "homely", concurrency=60), rows)
    farm.sink("drains", out)
    wait_until(lambda: farm.status("drains").ended > 20, 60, "some rollouts")
    # When an owner of each kind is asked to end
    for process in (models[0], resources[0]):
        process.send_signal(signal.SIGTERM)
    for process in (models[0], resources[0]):
        assert process.wait(40) == 0
    assert farm.ask("HLEN", keys.private) == 2
    wait_until(lambda: farm.status("drains").state == "done", 120, "the run to be done")
    # Then nobody has failed, no call was begun twice, and none waited for the drain
    found = records(out)
    all_is_well(found, "drains", 200)
    assert sum(call.get("attempt", 0) for one in found for call in one["calls"]) == 0
    assert max(call["started"] - call["queued"] for one in found for call in one["calls"]) < 5
    assert moves(served(found, "generate"))[0] >= 1
    assert moves(served(found, "tool", *ASKING))[0] >= 1
    # and all sessions are closed: those that moved by the worker that had them, at the latest when it has looked whether
    # their rollout is still there
    wait_until(lambda: made(tmp_path)["made"] == made(tmp_path)["closed"], ORPHAN_CHECK_AFTER + 30, "all sessions to be closed")


@pytest.mark.heavy
def test_conversations_stay_start_with_their_group_and_are_spread(farm, tmp_path, no_leaks):
    # Given three replicas, and groups of four that come a few at a time
    out = tmp_path / "out.jsonl"
    for _ in range(3):
        farm.start("model", model="homely")
    farm.start("resource", environments="walk")
    farm.start("agent")
    farm.wait_for(5)
    time.sleep(1.2)  # agents look who there is once a second
    config = RunConfig("stay", "walk", "tool", "homely", samples=4, concurrency=48)
    farm.produce(config, walks(tmp_path, 75, latency=0.02))
    found = farm.finish("stay", out)
    all_is_well(found, "stay", 75, 4)
    chains = served(found, "generate")
    moved, calls = moves(chains)
    groups = defaultdict(set)
    for one, chain in zip(found, chains, strict=True):
        groups[one["group_id"]].add(chain[0])
    together = sum(len(first) == 1 for first in groups.values())
    spread = sorted(Counter(worker for chain in chains for worker in chain).values())
    sessions = moves(served(found, "tool", *ASKING))
    print(json.dumps({"moved": moved, "of": calls, "together": together, "spread": spread, "sessions": sessions}))
    # Then conversations stay, groups start together, and nobody has much more to do than others
    assert moved <= calls * 0.1
    assert together >= 45
    assert len(spread) == 3
    assert spread[-1] < 2.5 * spread[0]
    # and a session is made once
    assert sessions[0] == 0
    assert made(tmp_path)["made"] == made(tmp_path)["closed"] == 300


@pytest.mark.heavy
def test_a_replica_that_is_too_slow_is_left(farm, tmp_path, no_leaks):
    out = tmp_path / "out.jsonl"
    farm.start("model", model="homely", latency=1.5, concurrency=4)
    farm.wait_for(1)
    ((slow, _),) = farm.registered().items()
    farm.start("model", model="homely", concurrency=4)
    farm.start("resource", environments="walk")
    farm.start("agent")
    farm.wait_for(4)
    time.sleep(1.2)
    farm.produce(RunConfig("slow", "walk", "tool", "homely", samples=2, concurrency=48), walks(tmp_path, 60))
    found = farm.finish("slow", out, limit=90)
    all_is_well(found, "slow", 60, 2)
    chains = served(found, "generate")
    share = sum(worker == slow for chain in chains for worker in chain) / sum(map(len, chains))
    left = sum(a == slow != b for chain in chains for a, b in itertools.pairwise(chain))
    print(json.dumps({"share of the slow one": share, "left it": left}))
    assert 0 < share < 0.35
    assert left >= 5
