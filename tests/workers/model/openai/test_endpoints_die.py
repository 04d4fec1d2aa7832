"""A run on several servers of one model, one of which dies and comes back."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from gymq.store.runs import RunConfig
from tests.support.model_server import ROOT
from tests.support.servers import free_port
from tests.support.waiting import wait_until


@pytest.mark.slow
@pytest.mark.chaos
def test_a_server_that_is_killed_in_a_run_costs_no_rollout_and_gets_new_ones_when_it_is_back(farm, spawn, tmp_path, no_leaks):
    # Given two model workers, which ask the same three servers
    ports = [free_port() for _ in range(3)]

    def serve(number: int) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "bench.mock_server", "--port", str(ports[number]), "--latency", "0.02"]
        process = spawn([*argv, "--called", f"server{number}"], cwd=ROOT, stdout=subprocess.PIPE)
        process.stdout.readline()
        return process

    running = [serve(number) for number in range(3)]
    bases = ",".join(f"http://127.0.0.1:{port}/v1" for port in ports)
    farm.start("agent")
    farm.start("resource", environments="weather")
    for _ in range(2):
        farm.start("model", model="openai:mock", base_url=bases)
    farm.wait_for(4)
    # When one of them is killed under load, and is there again later
    config = RunConfig("replicas", "weather", "tool", "openai:mock", samples=4, concurrency=16)
    farm.produce(config, [{"id": f"w{i}", "prompt": f"What is the weather in city{i}?"} for i in range(400)])
    wait_until(lambda: farm.status("replicas").ended > 200, 60, "some rollouts")
    running[0].kill()
    running[0].wait()
    wait_until(lambda: farm.status("replicas").ended > 600, 60, "more rollouts")
    serve(0)
    rollouts = sorted(farm.finish("replicas", tmp_path / "out.jsonl", 120), key=lambda one: one["finished_at"])
    # Then every rollout was completed without a new try of its own, and all servers have worked to the end
    assert Counter(one["status"] for one in rollouts) == {"completed": 1600}
    assert not any("fault" in call for one in rollouts for call in one["calls"])
    assert {one["model_name"] for one in rollouts[:200]} == {one["model_name"] for one in rollouts[-300:]} == {
        "server0", "server1", "server2",
    }  # fmt: skip
    # And the samples of a group were mostly together
    groups: dict[str, set[str]] = {}
    for one in rollouts:
        groups.setdefault(one["group_id"], set()).add(one["model_name"])
    assert sum(len(models) == 1 for models in groups.values()) > 250
