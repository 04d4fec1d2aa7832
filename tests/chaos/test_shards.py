"""One server, two as shards, a Cluster, a Sentinel's master: processes and servers die, and every rollout still ends once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import ExitStack

import pytest
from redis import Redis

from gymq.process.embedded_redis import EmbeddedRedis
from gymq.settings import Settings
from gymq.store.runs import RunConfig
from gymq.store.topology import parse
from tests.support import rollouts
from tests.support.farm import records, slow_rows
from tests.support.redis_server import leaked_keys
from tests.support.servers import Cluster, Watched
from tests.support.tiers import heavy, slow
from tests.support.waiting import wait_until

from .test_private import all_is_well, walks

#: Two turns with tools, two of which run beside each other.
SCRIPT = [[["step", {"number": 1}]], [["look", {"number": 2}], ["look", {"number": 3}]], [["step", {"number": 4}]]]

#: The roles of which the tests start two workers each.
ROLES = ("agent", "model", "resource")


class Servers:
    """The servers of one test: where they are, and a client for each."""

    def __init__(self, form: str, folder, stack: ExitStack) -> None:
        self.embedded: list[EmbeddedRedis] = []
        self.watched: Watched | None = None
        self.broker = ""
        if form == "cluster":
            cluster = Cluster(folder)
            stack.callback(cluster.kill)
            self.embedded = [stack.enter_context(EmbeddedRedis(folder / "broker", "127.0.0.1"))]
            self.url, self.broker = cluster.url(), self.embedded[0].url
            self.clients = [node.client() for node in cluster.nodes]
        elif form == "sentinel":
            self.watched = Watched(folder)
            stack.callback(self.watched.kill)
            self.url = self.watched.url
            self.clients = [self.watched.replica.client()]
        else:
            self.embedded = [
                stack.enter_context(EmbeddedRedis(folder / str(n), "127.0.0.1")) for n in range({"one": 1, "two": 2}[form])
            ]
            self.url = ",".join(server.url for server in self.embedded)
            self.clients = [Redis.from_url(server.url) for server in self.embedded]


@pytest.fixture
def servers(request, tmp_path):
    with ExitStack() as stack:
        yield Servers(request.param, tmp_path / "servers", stack)


@pytest.fixture
def settings(servers) -> Settings:
    """In the place of the suite's one server."""
    return Settings(redis_url=servers.url, broker_url=servers.broker, liveness=1.0)


def wait_for_workers(settings: Settings, count: int) -> None:
    for shard in range(len(parse(settings.redis_url))):
        rollouts.wait_for_workers(settings.at(shard), count)


def check(found: list[dict], run: str, rows: int, samples: int) -> None:
    """Every sample stands there once, and none is torn or doubled within."""
    wanted = Counter(f"{run}.{row}.{sample}" for row in range(rows) for sample in range(samples))
    assert Counter(record["rollout_id"] for record in found) == wanted
    shape = ("user", "assistant", "tool", "assistant", "tool", "tool", "assistant", "tool", "assistant")
    assert {tuple(m["role"] for m in record["messages"]) for record in found} == {shape}
    assert {record["reward"] for record in found} == {2.0}
    # A row's number is that of its place in the source, whichever shard it lies on.
    assert all(record["rollout_id"].split(".")[1] == record["task_id"][1:] for record in found)


@pytest.mark.chaos
@pytest.mark.parametrize("servers", [*heavy("one"), "two", *slow("cluster")], indirect=True)
def test_kill_9_of_one_of_each_role_and_of_the_sink_over_shards(farm, servers, tmp_path):
    # Given two of each role, and 300 rollouts in groups of two
    journal, out = tmp_path / "journal", tmp_path / "out.jsonl"
    roles = {role: [farm.start(role, model="homely", environments="slow") for _ in range(2)] for role in ROLES}
    wait_for_workers(farm.settings, 6)
    config = RunConfig("kills", "slow", "tool", "homely", samples=2, concurrency=60)
    farm.produce(config, slow_rows(journal, 150, SCRIPT, seconds=0.05, latency=0.05))
    sink = farm.sink("kills", out)
    wait_until(lambda: farm.status("kills").ended > 30, 60, "some rollouts")
    # When one of each role is killed while it holds started calls, and the sink
    held = {role: farm.kill_holding(processes[0]) for role, processes in roles.items()}
    sink.kill()
    sink.wait()
    assert farm.status("kills").ended < 300
    farm.sink("kills", out)
    wait_until(lambda: farm.status("kills").state == "done", 120, "the run to be done")
    # Then every sample ended exactly once, in Redis before any dedupe and in the file
    assert farm.status("kills").by_status == {"completed": 300}
    found = records(out)
    check(found, "kills", 150, 2)
    assert sum(call.get("attempt", 0) for record in found for call in record["calls"]) <= sum(held.values())
    # and all shards had their part, and hold nothing of it
    wait_until(lambda: not [leak for client in servers.clients for leak in leaked_keys(client)], 5, "the keys to go")
    shards = [rollouts.with_link(farm.settings.at(n), ended) for n in range(len(parse(farm.settings.redis_url)))]
    assert shards == [300 // len(shards)] * len(shards)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("servers", ["two", *heavy("cluster")], indirect=True)
def test_live_sessions_over_shards_survive_the_death_of_their_worker(farm, servers, tmp_path):
    out = tmp_path / "out.jsonl"
    resources = [farm.start("resource", environments="walk") for _ in range(2)]
    for role in ("agent", "model", "model"):
        farm.start(role, model="homely")
    wait_for_workers(farm.settings, 5)
    farm.produce(RunConfig("walks", "walk", "tool", "homely", concurrency=40), walks(tmp_path, 100))
    farm.sink("walks", out)
    wait_until(lambda: farm.status("walks").ended > 10, 60, "some rollouts")
    farm.kill_holding(resources[0])
    wait_until(lambda: farm.status("walks").state == "done", 120, "the run to be done")
    all_is_well(records(out), "walks", 100)
    wait_until(lambda: not [leak for client in servers.clients for leak in leaked_keys(client)], 5, "the keys to go")


async def ended(connection) -> int:
    return int(await connection.send("HGET", connection.keys.run("kills"), "ended"))


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("servers", ["two"], indirect=True)
def test_while_one_shard_is_away_the_other_goes_on_and_then_all_is_done(farm, servers, tmp_path):
    # Given a run over two shards, with its workers and its sink
    journal, out = tmp_path / "journal", tmp_path / "out.jsonl"
    for role in ROLES:
        farm.start(role, model="scripted", environments="slow")
    wait_for_workers(farm.settings, 3)
    config = RunConfig("away", "slow", "tool", "scripted", samples=2, concurrency=20)
    farm.produce(config, slow_rows(journal, 150, SCRIPT, seconds=0.02, latency=0.02))
    farm.sink("away", out)
    wait_until(lambda: out.exists() and len(records(out)) > 30, 60, "some rollouts in the file")
    # When the second shard's server dies
    os.kill(servers.embedded[1].pid, signal.SIGKILL)
    wait_until(lambda: not servers.embedded[1].alive, 10, "its death")
    # Then the first shard's rollouts all end, and reach the file
    mine = {f"away.{row}.{sample}" for row in range(0, 150, 2) for sample in range(2)}
    wait_until(lambda: mine <= {record["rollout_id"] for record in records(out)}, 90, "the first shard's rollouts")
    assert len(records(out)) < 300
    # and when it is back, the others do
    servers.embedded[1].start()
    wait_until(lambda: farm.status("away").state == "done", 120, "the run to be done")
    check(records(out), "away", 150, 2)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("servers", ["sentinel"], indirect=True)
def test_a_run_survives_the_death_of_a_sentinels_master(farm, servers, tmp_path):
    # Given a run on a master with a replica and a Sentinel
    journal, out = tmp_path / "journal", tmp_path / "out.jsonl"
    processes = [farm.start(role, model="scripted", environments="slow") for role in ROLES]
    wait_for_workers(farm.settings, 3)
    config = RunConfig("over", "slow", "tool", "scripted", samples=2, concurrency=20)
    farm.produce(config, slow_rows(journal, 100, SCRIPT, seconds=0.02, latency=0.02))
    farm.sink("over", out)
    wait_until(lambda: out.exists() and len(records(out)) > 30, 60, "some rollouts in the file")
    # When the master dies
    servers.watched.master.kill()
    wait_until(servers.watched.taken_over, 30, "the replica to become the master")
    # Then the run is done on the other, and no rollout stands twice in the file
    wait_until(lambda: farm.status("over").state == "done", 120, "the run to be done")
    check(records(out), "over", 100, 2)
    # and no worker had to end
    assert [process.poll() for process in processes] == [None] * 3
