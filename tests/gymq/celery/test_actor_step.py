"""An actor inside a real Celery worker: it lives, is seen, drains, stops and dies with its process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from redis import Redis

from tests.support.redis_server import wait_until
from tests.support.tiers import heavy

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

    def celery(self, *arguments: str) -> str:
        """Run a command of Celery's command line against it."""
        argv = [sys.executable, "-m", "celery", "-A", "gymq", *arguments]
        done = subprocess.run(argv, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr


@pytest.fixture
def worker(redis_url, spawn, tmp_path):
    """Start a worker: `worker(role, *arguments, pool=...)`."""
    site = tmp_path / "site"
    # In the name of gymq itself, so that its own roles are not found.
    info = site / "gymq-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gymq\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "fake_role.py").write_text(ROLE)

    def start(role: str | None, *arguments: str, pool: str = "threads", ready: bool = True) -> Worker:
        log = tmp_path / f"{role}.log"
        argv = [sys.executable, "-m", "celery", "-A", "gymq", "worker", "-P", pool, "-c", "1", "-n", f"{role}@test"]
        argv += ["-l", "INFO", "--without-gossip", "--without-mingle", *(("--role", role) if role else ()), *arguments]
        env = {"PYTHONPATH": str(site), "GYMQ_REDIS_URL": redis_url}
        found = Worker(spawn(argv, env, stdout=log.open("wb"), stderr=-2, cwd=tmp_path), redis_url, log, f"{role}@test")
        found.env = env
        if ready:
            wait_until(lambda: "ready." in found.text or found.process.poll() is not None, limit=20)
            assert found.process.poll() is None, found.text
        return found

    return start


class Listener:
    """Hears all Celery events of a server."""

    def __init__(self, url: str) -> None:
        from celery import Celery

        self.events: list[dict] = []
        self._app = Celery("listener", broker=url, set_as_current=False)
        self._receiver: Any = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            self._receiver = self._app.events.Receiver(connection, handlers={"*": self.events.append})
            self._receiver.capture(limit=None, timeout=60, wakeup=False)

    def kinds(self, **fields) -> list[str]:
        return [event["type"] for event in self.events if fields.items() <= event.items()]

    def stop(self) -> None:
        if self._receiver is not None:
            self._receiver.should_stop = True
        self._thread.join(5)


@pytest.fixture
def listener(redis_url):
    heard = Listener(redis_url)
    yield heard
    heard.stop()


@pytest.mark.slow
def test_the_actors_events_are_sent_in_the_workers_name(worker, listener):
    agent = worker("agent")
    wait_until(lambda: listener.kinds(uuid="r1") == ["task-received", "task-started", "task-succeeded"])
    assert {event["hostname"] for event in listener.events} == {agent.name}


@pytest.mark.slow
def test_sigterm_drains_the_actor_while_the_worker_stays_visible(worker, listener):
    # Given an agent that needs 12 s to drain
    agent = worker("agent", "--option", "work=12")
    wait_until(lambda: listener.kinds(type="worker-heartbeat"))

    # When it gets SIGTERM
    agent.process.terminate()
    wait_until(lambda: agent.said == ["main", "drain"])
    began, heartbeats = time.monotonic(), len(listener.kinds(type="worker-heartbeat"))

    # Then it still answers remote control, and takes no more tasks
    assert '"draining": true' in agent.celery("inspect", "stats", "--json")
    wait_until(lambda: "gymq.rollouts" not in agent.celery("inspect", "active_queues", "--json"))
    assert agent.process.poll() is None
    # And when the actor is done it ends well, its last events sent, its heart beating all the while
    assert agent.process.wait(25) == 0, agent.text
    assert agent.said == ["main", "drain", "done"]
    assert time.monotonic() - began > 11
    assert len(listener.kinds(type="worker-heartbeat")) >= heartbeats + 2
    wait_until(lambda: listener.kinds(uuid="r2") == ["task-failed"])
    kinds = listener.kinds()
    assert kinds.index("worker-offline") > len(kinds) - 1 - kinds[::-1].index("worker-heartbeat")


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[15, 15], *heavy([15, 2], [2])])
def test_a_second_sigterm_or_sigint_stops_the_actor(worker, numbers):
    agent = worker("agent", "--option", "work=600")
    for number in numbers:
        agent.process.send_signal(number)
        time.sleep(0.3)
    assert agent.process.wait(10) == 0, agent.text
    assert agent.said == ["main", *(["drain"] if len(numbers) == 2 else []), "stop", "done"]


def test_a_drain_that_takes_too_long_is_stopped(worker):
    agent = worker("agent", "--option", "work=600", "--option", "drain_limit=1")
    agent.process.terminate()
    assert agent.process.wait(10) == 0, agent.text
    assert agent.said == ["main", "drain", "stop", "done"]


@pytest.mark.slow
def test_an_actor_that_does_not_stop_is_left_behind(worker):
    agent = worker("agent", "--option", "hang=1", "--option", "drain_limit=0.5")
    agent.process.terminate()
    assert agent.process.wait(20) == 1
    assert "gymq: Fake did not stop within 10 s" in agent.text


@pytest.mark.slow
@pytest.mark.parametrize(("option", "says"), [("die=1", "Fake died: ValueError: boom"), ("end=1", "returned from main")])
def test_the_death_of_the_actor_ends_the_process(worker, option, says):
    agent = worker("agent", "--option", option, ready=False)
    assert agent.process.wait(20) == 1
    assert says in agent.text.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("role", ["model", *heavy("resource")])
def test_other_roles_read_no_queue(worker, role):
    found = worker(role)
    assert "gymq" not in found.celery("inspect", "active_queues", "--json").replace("celery@", "")
    found.process.terminate()
    assert found.process.wait(10) == 0, found.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "pool", "arguments", "says"),
    [
        ("agent", "prefork", (), "--role agent needs -P threads, not prefork"),
        ("executor", "threads", (), "--role executor needs -P prefork, not threads"),
        ("poet", "threads", (), "unknown role 'poet'; say --role agent, model, resource, executor"),
        (None, "threads", (), "no --role given"),
        ("agent", "threads", ("--option", "x"), "--option 'x': write KEY=VALUE"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused_in_one_line(worker, role, pool, arguments, says):
    found = worker(role, *arguments, pool=pool, ready=False)
    assert found.process.wait(20) == 2
    assert says in found.text
    assert "Traceback" not in found.text


def test_the_worker_goes_on_when_redis_comes_back(worker, redis_server):
    # Given a worker whose server goes away for a while
    agent = worker("agent")
    redis_server.stop()
    time.sleep(1)
    redis_server.start()

    # Then it answers again, and drains as before
    wait_until(lambda: '"draining": false' in agent.celery("inspect", "stats", "--json"), limit=20)
    agent.process.terminate()
    assert agent.process.wait(15) == 0, agent.text
