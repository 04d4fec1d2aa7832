"""Weights that change under load: nothing is lost, versions only grow, replicas take turns, the broken ones leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from redis import Redis

from gymq.client.publish_weights import publish_weights
from gymq.client.replica_status import ModelWeights, weights_status
from gymq.errors import GymqError, UsageError
from gymq.store.connection import Connection
from gymq.store.runs import RunConfig
from tests.support import rollouts
from tests.support.farm import slow_rows
from tests.support.tiers import heavy
from tests.support.waiting import wait_until

#: Seconds that an answer of the toy takes.
LATENCY = 0.4

#: Options of its workers.
TOY = {"model": "toy", "latency": LATENCY}


def make_weights(folder: Path, name: str, **told: object) -> str:
    """A folder of weights for the toy."""
    path = folder / name
    path.mkdir()
    (path / "weights.json").write_text(json.dumps({"journal": str(folder / "updates")} | told))
    return str(path)


def updates(folder: Path) -> list[tuple[str, int, int, str, int, float]]:
    """What the replicas noted: begin or end, pid, version, mode, calls in flight, when."""
    journal = folder / "updates"
    lines = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
    return [(what, int(pid), int(version), mode, int(calls), float(at)) for what, pid, version, mode, calls, at in lines]


def look(settings) -> ModelWeights:
    (found,) = rollouts.with_shards(settings, lambda shards: weights_status(shards, "toy"))
    return found


def start(farm, models: int = 2, rows: int = 100, turns: int = 6, **fields):
    """Agents, resources and replicas, at work on a run of several turns each."""
    farm.start("agent")
    farm.start("resource", environments="slow")
    replicas = [farm.start("model", **TOY) for _ in range(models)]
    farm.wait_for(2 + models)
    if rows:
        journal = farm._folder / "journal"
        script = [[["step", {"number": i}]] for i in range(turns - 1)]
        config = RunConfig("r", "slow", "tool", "toy", concurrency=24, **fields)
        farm.produce(config, slow_rows(journal, rows, script))
        wait_until(lambda: farm.status("r").ended >= 4, 30, "a few rollouts to end")
    return replicas


def answers(found: list[dict]) -> list[tuple[str, float, list[list[int]]]]:
    """Each answer: who gave it, when, and the runs of versions, in the order in which they were given."""
    calls = [call for record in found for call in record["calls"] if call["kind"] == "generate"]
    assert all(call.get("fault") is None for call in calls)
    return sorted(((call["worker"], call["finished"], call["tokens"]["versions"]) for call in calls), key=lambda one: one[1])


def assert_versions_grow(found: list[dict], allowed: set[int]) -> set[int]:
    """Each replica's answers end with versions that never go back; returns those seen."""
    last: dict[str, int] = {}
    seen: set[int] = set()
    for worker, _, versions in answers(found):
        run_of = [version for _, version in versions]
        assert run_of == sorted(run_of)
        assert run_of[-1] >= last.get(worker, 0), f"{worker} went back to {run_of}"
        last[worker] = run_of[-1]
        seen |= set(run_of)
    assert seen <= allowed
    return seen


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("keep", "rolling"),
        *heavy(("abort", "at-once"), ("keep", "at-once"), ("wait", "rolling"), ("wait", "at-once"), ("abort", "rolling")),
    ],
)
def test_new_weights_under_load_lose_nothing(farm, tmp_path, mode, how, no_leaks):
    start(farm)
    path = make_weights(tmp_path, "one", seconds=0.5)
    # When weights are published while conversations are under way
    found = publish_weights("toy", 1, path, mode=mode, rolling=how == "rolling", wait=30, settings=farm.settings)
    assert [one.version for one in found.replicas] == [1, 1]
    assert farm.status("r").ended < 100
    # Then all of them end well, every answer is of the old or the new version, and a replica never goes back
    out = farm.finish("r", tmp_path / "out.jsonl")
    assert len(out) == 100
    assert {record["status"] for record in out} == {"completed"}
    assert assert_versions_grow(out, {0, 1}) == {0, 1}
    # and calls in flight were treated as asked
    noted = updates(tmp_path)
    mixed = [versions for _, _, versions in answers(out) if len(versions) > 1]
    if mode == "keep":
        assert mixed
        assert max(calls for what, _, _, _, calls, _ in noted if what == "begin") > 0
    else:
        assert not mixed
        assert all(calls == 0 for *_, calls, _ in noted)
    # and replicas took turns, or not
    spans = {pid: [at for _, one, *_, at in noted if one == pid] for _, pid, *_ in noted}
    (_, first_ended), (second_began, _) = sorted(spans.values())
    assert (first_ended <= second_began) == (how == "rolling")


@pytest.mark.slow
def test_a_replica_that_cannot_load_leaves_and_the_others_serve(farm, tmp_path, no_leaks):
    first, second = start(farm)
    path = make_weights(tmp_path, "broken", seconds=0.2, victims=1)
    # When one of two replicas cannot load what was published
    with pytest.raises(GymqError, match=r"1 replicas could not load it.*the weights are broken"):
        publish_weights("toy", 1, path, wait=30, settings=farm.settings)
    # Then its process ends with one line, and it stands in the status
    wait_until(lambda: (first.poll() is None) != (second.poll() is None), 20, "one of them to end")
    gone = first if first.poll() is not None else second
    assert gone.returncode == 1
    log = (tmp_path / f"model{3 if gone is first else 4}.log").read_text()
    assert "cannot be loaded" in log
    assert path in log
    assert "Traceback" not in log
    there = look(farm.settings)
    assert [one.version for one in there.replicas] == [1]
    assert [one.pid for one in there.failed] == [gone.pid]
    # and the other one serves, and nothing is lost; what it held counts as no death
    out = farm.finish("r", tmp_path / "out.jsonl")
    assert {record["status"] for record in out} == {"completed"}
    assert_versions_grow(out, {0, 1})
    assert not any(call.get("attempt") for record in out for call in record["calls"])
    # and good weights make the status good again
    publish_weights("toy", 2, make_weights(tmp_path, "good"), wait=30, settings=farm.settings)
    assert look(farm.settings).failed == []


@pytest.mark.slow
def test_who_comes_late_never_answers_with_an_old_version(farm, tmp_path, no_leaks):
    # Given a version that was published before anybody was there
    publish_weights("toy", 7, make_weights(tmp_path, "seven", seconds=1), settings=farm.settings)
    start(farm, rows=20)
    out = farm.finish("r", tmp_path / "out.jsonl")
    # Then no answer is of another one
    assert assert_versions_grow(out, {7}) == {7}
    assert {record["status"] for record in out} == {"completed"}


@pytest.mark.slow
def test_weights_that_lie_nowhere_end_a_worker_before_its_first_call(farm, tmp_path, no_leaks):
    publish_weights("toy", 1, str(tmp_path / "nowhere"), settings=farm.settings)
    worker = farm.start("model", **TOY)
    assert worker.wait(30) == 1
    log = (tmp_path / "model1.log").read_text()
    assert "Traceback" not in log
    # It is logged as it happens, and said once more by the worker that ends of it.
    lines = [line for line in log.splitlines() if "cannot be loaded" in line]
    assert len(lines) == 2
    assert all(str(tmp_path / "nowhere") in line for line in lines)
    assert os.uname().nodename in lines[1]
    (failure,) = look(farm.settings).failed
    assert failure.pid == worker.pid


@pytest.mark.heavy
@pytest.mark.chaos
def test_a_replica_killed_while_it_loads_holds_up_nobody_for_long(farm, tmp_path, no_leaks):
    replicas = start(farm)
    publish_weights("toy", 1, make_weights(tmp_path, "slow", seconds=2), settings=farm.settings)
    wait_until(lambda: updates(tmp_path), 20, "one to begin")
    # When the one whose turn it is dies in the middle
    (_, pid, *_), *_ = updates(tmp_path)
    os.kill(pid, signal.SIGKILL)
    # Then the other one gets its turn, and a new one begins with the new version
    wait_until(lambda: [one.version for one in look(farm.settings).replicas] == [1], 30, "the other to take it")
    late = farm.start("model", **TOY)
    out = farm.finish("r", tmp_path / "out.jsonl")
    assert {record["status"] for record in out} == {"completed"}
    assert_versions_grow(out, {0, 1})
    names = {worker for worker, *_ in answers(out)}
    for name in names:
        if f"-{late.pid}-" in name:
            assert all(versions == [[0, 1]] for worker, _, versions in answers(out) if worker == name)
    assert pid in {one.pid for one in replicas}


@pytest.mark.heavy
@pytest.mark.chaos
def test_a_replica_that_was_away_looks_before_it_answers(farm, tmp_path, no_leaks):
    sleeper, _ = start(farm)
    # Given a replica that stands still while all others take new weights
    os.kill(sleeper.pid, signal.SIGSTOP)
    wait_until(lambda: [one.pid for one in look(farm.settings).replicas] != [], 10)
    wait_until(lambda: len(look(farm.settings).replicas) == 1, 20, "it to count as dead")
    publish_weights("toy", 1, make_weights(tmp_path, "one"), wait=30, settings=farm.settings)
    done = time.time()
    # When it comes back
    os.kill(sleeper.pid, signal.SIGCONT)
    out = farm.finish("r", tmp_path / "out.jsonl")
    # Then nothing that was sampled since is of the old version, but for what it had begun before
    for worker, finished, versions in answers(out):
        if finished > done + 2 * LATENCY + 1:
            assert versions[-1][1] == 1, worker


@pytest.mark.slow
@pytest.mark.chaos
def test_a_publisher_killed_at_any_moment_leaves_old_or_new(farm, tmp_path, no_leaks):
    old = make_weights(tmp_path, "old")
    publish_weights("toy", 1, old, settings=farm.settings)
    new = make_weights(tmp_path, "new")
    argv = [sys.executable, "-m", "gymq.cli", "weights", "publish", "--model", "toy", "--path", new, "--version"]
    seen = set()
    for version in range(2, 12):
        publisher = subprocess.Popen([*argv, str(version)], env=os.environ | farm.settings.environment())
        time.sleep(0.3 + version * 0.06)
        publisher.kill()
        publisher.wait()
        wanted = look(farm.settings).wanted
        assert (wanted.version, wanted.path) in {(1, old), *((v, new) for v in range(2, version + 1))}
        assert int(farm.ask("HGET", Connection(farm.settings, "test").keys.weights("toy"), "version")) == wanted.version
        seen.add(wanted.version)
    assert seen


@pytest.mark.slow
def test_a_version_that_is_not_above_the_last_is_refused(farm, tmp_path, no_leaks):
    path = make_weights(tmp_path, "w")
    publish_weights("toy", 3, path, settings=farm.settings)
    for version in (3, 2):
        with pytest.raises(UsageError, match=f"at version 3, and versions only grow: {version} is refused"):
            publish_weights("toy", version, path, settings=farm.settings)
    assert look(farm.settings).wanted.version == 3


@pytest.mark.parametrize("arguments, said", [
    (("", 1, "p", "keep"), "name the model"),
    (("toy", 0, "p", "keep"), "version is 0"),
    (("toy", True, "p", "keep"), "version is True"),
    (("toy", 1, "", "keep"), "path is ''"),
    (("toy", 1, "p", "soon"), "mode is 'soon'"),
])  # fmt: skip
def test_nonsense_is_refused_with_a_line(settings, arguments, said):
    model, version, path, mode = arguments
    with pytest.raises(UsageError, match=said):
        publish_weights(model, version, path, mode=mode, settings=settings)


@pytest.mark.slow
def test_the_commands_say_who_has_which(farm, tmp_path, no_leaks):
    farm.start("model", **TOY)
    farm.wait_for(1)

    def gymq(*argv: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gymq.cli", *argv], env=os.environ | farm.settings.environment(), text=True,
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    path = make_weights(tmp_path, "w")
    said = gymq("weights", "publish", "--model", "toy", "--version", "4", "--path", path, "--wait", "30")
    assert said.splitlines()[0] == f"model toy: version 4 is wanted, from {path}"
    assert "took it" in said
    assert "versions only grow" in gymq("weights", "publish", "--model", "toy", "--version", "4", "--path", path, code=2)
    assert "version 4 of" in gymq("weights", "status")
    (told,) = json.loads(gymq("weights", "status", "--json"))
    assert [one["version"] for one in told["replicas"]] == [4]
    assert "4: 1" in gymq("status")
    assert "version 4" in gymq("control", "stats")
    assert "forgotten" in gymq("weights", "forget", "--model", "toy")
    assert "none were published" in gymq("weights", "forget", "--model", "toy", code=2)
    # A new training may begin again
    publish_weights("toy", 1, path, wait=30, settings=farm.settings)
    assert [one.version for one in look(farm.settings).replicas] == [1]


@pytest.mark.heavy
def test_what_grows_stale_ends_and_the_others_are_used(farm, tmp_path, no_leaks):
    # Given a run that bears no old tokens, at work, and a trainer that uses what it gets
    start(farm, max_staleness=0, samples=2, rows=50)
    for version in (1, 2):
        publish_weights("toy", version, make_weights(tmp_path, f"v{version}"), wait=30, settings=farm.settings)
        time.sleep(1.5)
    out = farm.finish("r", tmp_path / "out.jsonl")
    # Then every rollout ended; what was stale at one of its steps was ended there, without a reward
    assert len(out) == 100
    stale = [record for record in out if record["stop"] == "stale"]
    assert 0 < len(stale) < 100
    assert all(record["status"] == "cancelled" and record["error"]["kind"] == "stale" for record in stale)
    assert all(record["reward"] is None and record["versions"][0] < 2 for record in stale)
    assert {record["status"] for record in out if record["stop"] != "stale"} == {"completed"}


@pytest.mark.heavy
def test_over_shards_the_broken_one_hands_back_on_each(farm, tmp_path, redis_url):
    # Given two shards: two databases of one server
    both = farm.settings = msgspec.structs.replace(farm.settings, redis_url=f"{redis_url},{redis_url[:-1]}1")
    with Redis.from_url(f"{redis_url[:-1]}1") as other:
        other.flushdb()
        start(farm, rows=60)
        path = make_weights(tmp_path, "broken", seconds=0.2, victims=1)
        with pytest.raises(GymqError, match="1 replicas could not load it"):
            publish_weights("toy", 1, path, wait=30, settings=both)
        # A copy that went missing is written again
        other.delete(Connection(both.at(1), "test").keys.weights("toy"))
        wait_until(lambda: other.hget(Connection(both.at(1), "test").keys.weights("toy"), "version") == b"1", 10, "the copy")
        out = farm.finish("r", tmp_path / "out.jsonl")
        assert {record["status"] for record in out} == {"completed"}
        assert_versions_grow(out, {0, 1})
        assert not any(call.get("attempt") for record in out for call in record["calls"])
        other.flushdb()
