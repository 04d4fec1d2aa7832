"""A call that kills its process is found among the innocents and ends as a dead letter; nobody else pays for it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from gymq.runtime.quarantine import OPTIONS
from gymq.store.runs import RunConfig
from tests.support import rollouts
from tests.support.farm import PLUGIN, records
from tests.support.shard import keys
from tests.support.waiting import wait_until

pytestmark = pytest.mark.chaos

#: Seconds that 300 suspects may take, one after another, beside other load.
LIMIT = 240


class Keeper:
    """Starts workers of one role again when they die, as a supervisor does.

    Args:
        farm: the installation.
        role: the role.
        count: how many there are.
        options: the role's.
    """

    def __init__(self, farm, role: str, count: int, **options) -> None:
        self._start = lambda: farm.start(role, **options)
        self.workers = [self._start() for _ in range(count)]
        self.deaths = 0

    def look(self) -> None:
        """Start again who died."""
        for i, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.deaths += 1
                self.workers[i] = self._start()


def rows(tmp_path, count: int, tool: str, deadly: str = "", victim: int = -1, **fields) -> list[dict]:
    """Rows of one tool call each; `victim` is the row that kills."""
    (tmp_path / "journal").touch()
    return [
        {
            "id": f"t{i}",
            "prompt": "go",
            "environment": "deadly",
            "journal": str(tmp_path / "journal"),
            "mended": str(tmp_path / "mended"),
            "script": [[[tool, {"number": i}]]],
            "deadly": deadly if i == victim else "",
            **fields,
        }
        for i in range(count)
    ]


def finish(farm, keeper: Keeper, config: RunConfig, tasks: list[dict], out) -> list[dict]:
    """Roll out, starting again who dies; the records."""
    farm.produce(config, tasks)
    farm.sink(config.name, out)

    def over() -> bool:
        keeper.look()
        return farm.status(config.name).state == "done"

    wait_until(over, LIMIT, f"run {config.name} to be done")
    return records(out)


def graves(farm) -> list:
    return [one.letter for one in asyncio.run(rollouts.letters(farm.settings))]


def quarantines(farm) -> list[dict]:
    return [info for info in farm.registered().values() if info["alone"]]


def gymq(farm, *argv: str, code: int = 0) -> str:
    environment = os.environ | {"GYMQ_REDIS_URL": farm.settings.redis_url, "PYTHONPATH": str(PLUGIN)}
    done = subprocess.run(
        [sys.executable, "-m", "gymq.cli", *argv], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_deadly_call_among_hundreds_ends_alone_and_nobody_else_pays(farm, tmp_path, no_leaks):
    # Given 300 rollouts in groups of three, all in the hands of two workers, and one row whose tool kills its process
    farm.start("agent")
    farm.start("model", model="scripted")
    keeper = Keeper(farm, "resource", 2, environments="deadly")
    farm.wait_for(4)
    config = RunConfig("poison", "deadly", "tool", "scripted", samples=3, concurrency=300)
    # When they are rolled out
    tasks = rows(tmp_path, 100, "bite", "tool", victim=40, seconds=0.1)
    found = finish(farm, keeper, config, tasks, tmp_path / "out.jsonl")
    # Then the row's group failed as a whole, and everything else is as if nothing had happened
    assert Counter(one["rollout_id"] for one in found) == Counter(f"poison.{i}.{j}" for i in range(100) for j in range(3))
    bad = [one for one in found if one["status"] != "completed"]
    assert {(one["group_id"], one["status"], one["error"]["kind"]) for one in bad} == {("poison.40", "failed", "poison")}
    assert len(bad) == 3
    assert {one["reward"] for one in found if one not in bad} == {1.0}
    # and each of its calls died twice among others and three times alone
    buried = graves(farm)
    assert {letter.rollout.partition("~")[0] for letter in buried} == {f"poison.40.{j}" for j in range(3)}
    assert [(letter.deaths, letter.strikes, letter.name) for letter in buried] == [(5, 3, "bite")] * 3
    # and every innocent ran once more for each death in which it was held, and no more
    runs = Counter(line.split()[0] for line in (tmp_path / "journal").read_text().splitlines())
    allowed: Counter[str] = Counter()
    for one in found:
        allowed[one["task_id"]] += sum(1 + call.get("attempt", 0) for call in one["calls"] if call["kind"] == "tool")
    assert all(runs[task] <= allowed[task] for task in runs if task != "t40"), runs - allowed
    attempts = [call.get("attempt", 0) for one in found if one not in bad for call in one["calls"]]
    assert max(attempts) <= 2
    # and the ordinary workers died twice for each at most
    assert keeper.deaths <= 6
    # When the quarantines have nothing to do, they end
    wait_until(lambda: not quarantines(farm), 30, "the quarantines to end")

    # Given the letters, they are listed and shown
    assert json.loads(gymq(farm, "status", "--json"))["dead"] == 3
    assert "dead letters: 3" in gymq(farm, "status")
    listed = gymq(farm, "dead", "list", "--run", "poison")
    assert all(letter.id in listed for letter in buried)
    assert "no dead letters" in gymq(farm, "dead", "list", "--run", "other")
    first = buried[0]
    shown = json.loads(gymq(farm, "dead", "show", first.id))
    assert (shown["arguments"], shown["task"]["id"], shown["deaths_alone"]) == ({"number": 40}, "t40", 3)
    assert shown["task"]["fields"]["deadly"] == "tool" and shown["config"]["samples"] == 3
    # When the environment is mended and one is replayed
    (tmp_path / "mended").touch()
    assert "enqueued" in gymq(farm, "dead", "replay", first.id)
    assert "before" in gymq(farm, "dead", "replay", first.id)
    again = farm.finish("poison-replay", tmp_path / "again.jsonl")
    # Then it completes, in a run of its own
    assert [(one["task_id"], one["status"], one["reward"]) for one in again] == [("t40", "completed", 1.0)]
    assert len(records(tmp_path / "out.jsonl")) == 300
    # and what cannot be replayed or found is refused in one line
    for argv, line in (
        (("replay", first.id, "--run", "poison"), "give the replay another name"),
        (("replay", first.id), "is done"),
        (("show", "nobody"), "no dead letter 'nobody'"),
        (("drop",), "name an ID"),
    ):
        said = gymq(farm, "dead", *argv, code=2 if "done" not in line else 1)
        assert line in said and len(said.splitlines()) == 1
    # When they are dropped, they are gone
    assert "1 dead letter dropped" in gymq(farm, "dead", "drop", first.id)
    assert {letter.id for letter in graves(farm)} == {letter.id for letter in buried[1:]}
    assert "2 dead letters dropped" in gymq(farm, "dead", "drop", "--run", "poison")
    assert graves(farm) == []


@pytest.mark.heavy
def test_a_backend_that_kills_its_worker_loses_that_rollout_only(farm, tmp_path):
    farm.start("agent")
    farm.start("resource", environments="deadly")
    keeper = Keeper(farm, "model", 1, model="lethal")
    farm.wait_for(3)
    config = RunConfig("backend", "deadly", "tool", "lethal", concurrency=60)
    found = finish(farm, keeper, config, rows(tmp_path, 60, "step", "backend", victim=7), tmp_path / "out.jsonl")
    assert len(found) == 60
    assert [(one["task_id"], one["error"]["kind"]) for one in found if one["status"] != "completed"] == [("t7", "poison")]
    (letter,) = graves(farm)
    assert (letter.role, letter.mailbox, letter.kind, letter.name) == ("model", "model:lethal", "generate", "lethal")
    assert (letter.deaths, letter.strikes) == (5, 3)
    assert keeper.deaths == 2


@pytest.mark.heavy
def test_an_agent_whose_code_kills_its_worker_loses_that_rollout_only(farm, tmp_path):
    keeper = Keeper(farm, "agent", 1)
    farm.start("model", model="scripted")
    farm.start("resource", environments="deadly")
    farm.wait_for(3)
    config = RunConfig("agents", "deadly", "assassin", "scripted", samples=2, concurrency=60)
    tasks = rows(tmp_path, 30, "step")
    tasks[7]["prompt"] = "kill"
    found = finish(farm, keeper, config, tasks, tmp_path / "out.jsonl")
    assert len(found) == 60
    bad = [one for one in found if one["status"] != "completed"]
    assert {(one["task_id"], one["status"], one["error"]["kind"]) for one in bad} == {("t7", "failed", "poison")}
    assert len(bad) == 2
    assert {one["reward"] for one in found if one not in bad} == {1.0}
    assert [(letter.role, letter.kind, letter.name, letter.deaths) for letter in graves(farm)] == [
        ("agent", "act", "assassin", 5)
    ] * 2
    assert keeper.deaths <= 4


@pytest.mark.heavy
def test_random_kills_of_workers_make_no_dead_letters(farm, tmp_path, no_leaks):
    # Given calls of a while and nobody guilty
    farm.start("agent")
    farm.start("model", model="scripted")
    keeper = Keeper(farm, "resource", 2, environments="deadly")
    farm.wait_for(4)
    config = RunConfig("innocent", "deadly", "tool", "scripted", concurrency=8)
    farm.produce(config, rows(tmp_path, 60, "bite", seconds=2))
    farm.sink("innocent", tmp_path / "out.jsonl")
    # When ordinary workers are killed at random, some while a quarantine of theirs works
    dice, orphaned = random.Random(7), 0
    for _ in range(8):
        time.sleep(dice.uniform(1.5, 3.5))
        orphaned += len(quarantines(farm))
        max(keeper.workers, key=farm.holds).kill()
        time.sleep(0.2)
        keeper.look()
    wait_until(lambda: farm.status("innocent").state == "done", LIMIT, "the run to be done")
    # Then all ended well, and no letter was written
    found = records(tmp_path / "out.jsonl")
    assert Counter(one["status"] for one in found) == Counter(completed=60)
    assert {one["reward"] for one in found} == {1.0}
    assert graves(farm) == []
    assert orphaned
    wait_until(lambda: not quarantines(farm), 30, "the quarantines to end")


@pytest.mark.heavy
def test_a_worker_that_is_drained_takes_its_quarantine_along_without_a_strike(farm, tmp_path):
    # Given a suspect that takes long, alone in the quarantine of the only worker
    farm.start("agent")
    farm.start("model", model="scripted")
    keeper = Keeper(farm, "resource", 1, environments="deadly")
    farm.wait_for(3)
    farm.produce(RunConfig("drained", "deadly", "tool", "scripted"), rows(tmp_path, 1, "bite", seconds=8))
    journal = tmp_path / "journal"
    for death in range(2):
        wait_until(lambda: journal.read_text().count("bite") == death + 1, 30, "the call to run")  # noqa: B023
        keeper.workers[0].kill()
        keeper.workers[0].wait()
        keeper.look()
    wait_until(lambda: quarantines(farm), 30, "a quarantine")
    alone = quarantines(farm)[0]["pid"]
    wait_until(lambda: f"bite {alone}" in journal.read_text(), 30, "the suspect to run")
    # When the worker is drained
    keeper.workers[0].terminate()
    assert keeper.workers[0].wait(30) == 0
    # Then its quarantine is gone, too, and what it held waits for another, without a strike
    wait_until(lambda: not quarantines(farm), 5, "the quarantine to end")
    strikes, _, deaths = _marks(farm, "resource:deadly")
    assert (strikes, deaths) == (b"0", b"2")
    # and the other completes it
    keeper.look()
    (record,) = farm.finish("drained", tmp_path / "out.jsonl")
    assert (record["status"], record["reward"]) == ("completed", 1.0)


def test_a_quarantine_whose_loop_stands_still_ends_itself_and_that_is_a_strike(farm, spawn, tmp_path):
    # Given a suspect that never lets go of the loop
    farm.start("agent")
    farm.start("model", model="scripted")
    farm.wait_for(2)
    box = "resource:blocking"
    task = {"id": "t", "prompt": "go", "environment": "blocking"}
    farm.produce(RunConfig("stuck", "blocking", "tool", "scripted"), [task])
    wait_until(lambda: farm.ask("XLEN", keys.mailbox(box)), 30, "the call")
    ((_, fields),) = farm.ask("XRANGE", keys.mailbox(box), "-", "+")
    farm.ask("XADD", keys.suspects(box), "*", *fields, "k", 0, "w", "somebody", "a", 2)
    # When it runs in a quarantine
    environment = farm.settings.environment() | {"PYTHONPATH": str(PLUGIN), OPTIONS: '{"environments": "blocking"}'}
    quarantine = spawn(
        [sys.executable, "-m", "gymq.runtime.quarantine_main", "resource"], environment, stderr=subprocess.DEVNULL
    )
    # Then that ends, and others hand the suspect back with a strike
    assert quarantine.wait(30) == 1
    wait_until(lambda: _marks(farm, box)[0] == b"1", 15, "the strike")
    assert _marks(farm, box)[2] == b"3"


def _marks(farm, box: str) -> list[bytes]:
    """Strikes, last victim and deaths of the one suspect."""
    ((_, fields),) = farm.ask("XRANGE", keys.suspects(box), "-", "+")
    return fields[-5::2]
