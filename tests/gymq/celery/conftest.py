"""Celery workers with a role that says in Redis what happens to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from redis import Redis

from tests.support.waiting import wait_until

#: A role that says in Redis what happens to it; the command line's options say how it behaves.
ROLE = """
import asyncio, collections, threading
import redis

class Fake:
    def __init__(self, settings, options):
        self.options = options
        self.client = redis.Redis.from_url(settings.redis_url)
        self.events = collections.deque()
        self.draining = threading.Event()
        self.stopped = threading.Event()
        self.woken = 0

    def say(self, word):
        self.client.rpush("test:said", word)

    async def main(self):
        self.say("main")
        for kind, fields in (
            ("task-received", {"uuid": "r1", "name": "rollout:weather", "args": "", "kwargs": ""}),
            ("task-started", {"uuid": "r1"}),
            ("task-succeeded", {"uuid": "r1", "result": "reward=1.0", "runtime": 2.5}),
        ):
            self.events.append((kind, fields))
        if "die" in self.options:
            await asyncio.sleep(0.5)
            raise ValueError("boom")
        if "end" in self.options:
            return
        if "hang" in self.options:
            await asyncio.sleep(3600)
        while not self.draining.is_set() and not self.stopped.is_set():
            await asyncio.sleep(0.02)
        for _ in range(int(float(self.options.get("work", 0)) / 0.02)):
            if self.stopped.is_set():
                break
            await asyncio.sleep(0.02)
        while "held" in self.options and not self.stopped.is_set() and not self.client.exists("test:let-go"):
            await asyncio.sleep(0.02)
        self.events.append(("task-failed", {"uuid": "r2", "exception": "last words"}))
        self.say("done")

    def drain(self):
        self.say("drain")
        self.draining.set()

    def stop(self):
        self.say("stop")
        self.stopped.set()

    def wake(self):
        self.woken += 1

    def stats(self):
        return {"options": self.options, "woken": self.woken, "draining": self.draining.is_set()}
"""

ENTRY_POINTS = """\
[gymq.roles]
agent = fake_role:Fake
model = fake_role:Fake
resource = fake_role:Fake
"""


class Worker:
    """One worker process.

    Args:
        process: it.
        url: its server.
        log: what it prints.
        name: its Celery name.
    """

    def __init__(self, process, url, log, name) -> None:
        self.process = process
        self.redis = Redis.from_url(url)
        self.log = log
        self.name = name
        self.env: dict[str, str] = {}

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def said(self) -> list[str]:
        return [word.decode() for word in self.redis.lrange("test:said", 0, -1)]

    def let_go(self) -> None:
        """Let an actor with the option `held` end its drain."""
        self.redis.set("test:let-go", 1)

    def celery(self, *arguments: str) -> str:
        """Run a command of Celery's command line against it."""
        argv = [sys.executable, "-m", "celery", "-A", "gymq", *arguments]
        done = subprocess.run(argv, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr


@pytest.fixture
def worker(redis_url, spawn, tmp_path):
    """Start a worker: `worker(role, *arguments)`."""
    site = tmp_path / "site"
    # In the name of gymq itself, so that its own roles are not found.
    info = site / "gymq-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gymq\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "fake_role.py").write_text(ROLE)

    def start(role: str, *arguments: str, ready: bool = True) -> Worker:
        log = tmp_path / f"{role}.log"
        argv = [sys.executable, "-P", "-m", "gymq.cli", "worker", role, "--name", role, "--log-level", "debug", *arguments]
        env = {"PYTHONPATH": str(site), "GYMQ_REDIS_URL": redis_url}
        found = Worker(
            spawn(argv, env, stdout=log.open("wb"), stderr=-2, cwd=tmp_path), redis_url, log, f"{role}@{socket.gethostname()}"
        )
        found.env = env
        if ready:
            wait_until(lambda: "ready." in found.text or found.process.poll() is not None, limit=20)
            assert found.process.poll() is None, found.text
        return found

    return start
