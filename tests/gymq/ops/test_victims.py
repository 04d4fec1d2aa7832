"""Chaos on purpose: who may be hit, what victims hold, and that it says what it did."""

from __future__ import annotations

import socket
import subprocess
import sys

import msgspec
import pytest

from gymq.ops.victims import Victim, held, unanswered, victims
from gymq.store.sharded import Shards
from gymq.store.worker_registry import WorkerEntry
from tests.support.rollouts import Workers
from tests.support.shard import keys


async def register(connection, name: str, pid: int, host: str) -> None:
    info = WorkerEntry("agent", host, pid, ["agent"])
    await connection.send("HSET", keys.workers, name, msgspec.json.encode(info))
    await connection.send("SET", keys.alive(name), 1, "PX", 10_000)


async def test_only_living_workers_of_this_machine_are_victims(settings, spawn):
    other = spawn(["sleep", "60"])
    named = spawn([sys.executable, "-c", "import time; time.sleep(60)", "celery", "worker"])
    async with Shards(settings, "test") as shards:
        connection = shards.first
        await register(connection, "agent-elsewhere", named.pid, "elsewhere")
        await register(connection, "agent-other", other.pid, socket.gethostname())  # its pid was given to somebody else
        await register(connection, "agent-dead", named.pid, socket.gethostname())
        await connection.send("DEL", keys.alive("agent-dead"))
        await register(connection, "agent-here", named.pid, socket.gethostname())
        assert await victims(shards) == [Victim("agent", named.pid, ("agent-here",), ("agent",))]
        assert await victims(shards, ["model"]) == []


async def test_what_a_victim_holds_is_what_is_delivered_and_not_answered(settings):
    async with Shards(settings, "test") as shards:
        connection = shards.first
        for stream in (keys.mailbox("agent"), keys.retry("agent"), keys.suspects("agent")):
            await connection.send("XGROUP CREATE", stream, keys.GROUP, "0", "MKSTREAM")
        await connection.send("XADD", keys.mailbox("agent"), "*", "r", "r.0.0~a1", "v", 3)
        await connection.send("HSET", keys.rollout("r.0.0~a1"), "v", 3)
        victim = Victim("agent", 1, ("agent-here",), ("agent",))
        assert await held(shards, victim) == set()
        await connection.send(
            "XREADGROUP", "GROUP", keys.GROUP, "agent-here", "COUNT", 1, "STREAMS", keys.mailbox("agent"), ">"
        )
        found = await held(shards, victim)
        assert found == await unanswered(shards, found) == {"r.0.0~a1:3"}
        await connection.send("HSET", keys.rollout("r.0.0~a1"), "v", 4)
        assert await unanswered(shards, found) == set()


def chaos(settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "gymq.cli", "chaos", "--redis", settings.redis_url, *arguments]
    return subprocess.run(argv, input="n\n", capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_it_says_what_is_wrong_in_one_line(settings):
    assert "--faults 'burn': use kill or stop" in chaos(settings, "--faults", "burn").stderr
    assert "no worker of this server runs on this machine" in chaos(settings, "--yes").stderr


@pytest.mark.heavy
def test_nobody_is_hit_without_a_yes(settings, spawn, tmp_path):
    workers = Workers(spawn, settings, tmp_path).start_all()
    said = chaos(settings, "--every", "0.5", "--for", "2")
    assert said.returncode != 0
    assert str(workers.processes["agent0"].pid) in said.stdout
    assert all(process.poll() is None for process in workers.processes.values())
    said = chaos(settings, "--every", "0.5", "--for", "1.5", "--faults", "kill", "--role", "model", "--seed", "1", "--yes")
    assert said.returncode == 0, said.stderr
    assert "seed 1" in said.stdout
    assert workers.processes["model0"].wait(5) == -9
    assert workers.processes["agent0"].poll() is None
