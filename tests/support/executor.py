"""An executor as a real process, and a client of it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec
from kombu import pools
from redis import Redis

from gymq.api.environment import DEFAULT_TIMEOUT
from gymq.wire.calls import Call, Reply, decode_reply
from gymq.wire.message import Message, encode_message
from tests.support.shard import keys

#: The folder of `isolated_world`, the environment whose tools run there.
WORLD = Path(__file__).parents[1] / "workers" / "executor"

#: Seconds after which a call that nobody works on is sent again, as a resource worker does: a child may die so fast that
#: Celery does not hear that it had begun.
LOST = 5.0

ENTRY_POINTS = """\
[gymq.environments]
wild = isolated_world:Wild

[gymq.tasks]
executor = gymq_workers.executor.task
world = isolated_world
"""


class Executor:
    """One executor process and what it replied.

    Args:
        process: the worker.
        url: the server.
        log: what it prints.
    """

    def __init__(self, process, url: str, log: Path) -> None:
        self.process = process
        self.redis = Redis.from_url(url)
        self.log = log
        self.sent: dict[str, float] = {}
        self._calls: dict[str, tuple[Call, float]] = {}
        self.replies: dict[str, list[tuple[Reply, float]]] = {}
        self._n = 0

    def send(self, name: str, arguments: str = "{}", *, timeout: float = DEFAULT_TIMEOUT, kind: str = "tool", **fields) -> str:
        """Send a call as a resource worker does."""
        from gymq_workers.executor.task import submit

        self._n += 1
        messages = [encode_message(Message(role="user", content="go"))]
        given = {"rollout": "r", "step": 3, "n": self._n, "kind": kind, "run": "demo", "environment": "wild", "row": 0}
        given |= {"queued": time.time(), "length": 1, "messages": messages, "name": name, "arguments": arguments}
        call = Call(**(given | fields))
        # An executor begins nothing that nobody waits for.
        self.redis.hset(keys.rollout(call.rollout), mapping={"v": call.step, f"c{call.step}.{call.n}": 1})
        submit(call, timeout)
        self.sent[call.id] = time.time()
        self._calls[call.id] = (call, timeout)
        return call.id

    def reply(self, call_id: str, within: float = 30) -> tuple[Reply, float]:
        """Wait for the reply to a call; also how many seconds after `send` it was sent."""
        from gymq_workers.executor.task import submit

        deadline, look = time.monotonic() + within, time.monotonic() + LOST
        while call_id not in self.replies:
            if time.monotonic() > look and not self.redis.hexists(keys.isolated, call_id):
                submit(*self._calls[call_id])
                look = time.monotonic() + LOST
            left = deadline - time.monotonic()
            assert left > 0, f"no reply to {call_id}; the log ends:\n{self.log.read_text()[-3000:]}"
            item = self.redis.blpop(["test:replies"], timeout=min(left, 1))
            if item:
                found, data, when = msgspec.msgpack.decode(item[1])
                self.replies.setdefault(found, []).append((decode_reply(data), when - self.sent[found]))
        return self.replies[call_id][0]


def packages(folder: Path, entry_points: str) -> str:
    """Install entry points into a folder; returns the PYTHONPATH that finds them and the isolated world."""
    info = folder / "gymq_tests-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gymq-tests\nVersion: 0\n")
    (info / "entry_points.txt").write_text(entry_points)
    return os.pathsep.join([str(folder), str(WORLD)])


def start_executor(redis_url, spawn, tmp_path, monkeypatch, name: str = "x", children: int = 2) -> Executor:
    """Start an executor and wait until it takes calls."""
    monkeypatch.setenv("GYMQ_REDIS_URL", redis_url)
    from gymq.celery import app

    if app.conf.broker_url != redis_url:
        app.conf.broker_url = app.conf.broker_read_url = app.conf.broker_write_url = redis_url
        pools.reset()
        app._pool = app.amqp._producer_pool = None
    log = tmp_path / f"{name}.log"
    argv = [sys.executable, "-P", "-m", "gymq.cli", "worker", "executor", "--environments", "wild"]
    argv += ["--processes", str(children), "--name", name, "--log-level", "debug"]
    env = {
        "PYTHONPATH": packages(tmp_path / "site", ENTRY_POINTS),
        "GYMQ_REDIS_URL": redis_url,
        "GYMQ_LIVENESS": "1",
        "TMPDIR": str(tmp_path),
    }
    process = spawn(argv, env, stdout=log.open("wb"), stderr=-2, cwd=tmp_path)
    found = Executor(process, redis_url, log)
    deadline = time.monotonic() + 30
    while "ready." not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found
