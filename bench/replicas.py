"""The processes of a measurement of scaling: an installation whose resource workers are as many as they are told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from bench import points
from bench.rows import rows
from gymq.errors import UnknownName
from gymq.process.child_process import ChildProcess
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.settings import Settings
from gymq.store.sharded import Shards
from tests.support.servers import free_port

#: Calls that one resource worker has in flight; with the tool's wait that is its rate.
SLOTS = 20


class Replicas:
    """The Deployment of the resource workers: as many `gymq worker` processes as it is told.

    Args:
        folder: for logs.
        env: variables of the processes.
    """

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder = folder
        self._env = env
        self._started = 0
        self.running: list[tuple[int, ChildProcess]] = []
        self._ending: list[tuple[int, ChildProcess]] = []
        #: Exit codes of those that were drained.
        self.codes: list[int] = []

    def scale(self, count: int) -> None:
        """Start, or tell the newest to drain, until so many run."""
        while len(self.running) < count:
            port, name = free_port(), f"resource{self._started}"
            argv = gymq("worker", "resource", "--environments", "bench_slow", "--concurrency", SLOTS, "--metrics-port", port)
            self.running.append((port, ChildProcess(argv, self._env, name, self._folder / f"{name}.log")))
            self._started += 1
        while len(self.running) > count:
            port, child = self.running.pop()
            os.kill(child.pid, signal.SIGTERM)
            self._ending.append((port, child))

    def ports(self) -> list[int]:
        """Note who has ended; return the ports of those that still run.

        Raises:
            RuntimeError: one died that nobody had told to end.
        """
        for _, child in self.running:
            if not child.alive:
                raise RuntimeError(f"{child.name} died: " + "\n".join(child.tail(20)))
        for each in [each for each in self._ending if not each[1].alive]:
            self._ending.remove(each)
            self.codes.append(each[1].code or 0)
        return [port for port, _ in [*self.running, *self._ending]]

    def kill(self) -> None:
        """End all."""
        for _, child in [*self.running, *self._ending]:
            child.kill()


def gymq(*words: object) -> list[str]:
    """Return the command line of a command of gymq."""
    return [sys.executable, "-m", "gymq.cli", *map(str, words)]


class Installation:
    """Server, agent, model worker and `gymq metrics` of one measurement; what it started is gone afterwards.

    Args:
        folder: for data and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[ChildProcess] = []

    def __enter__(self) -> Installation:
        self._server = EmbeddedRedis(self.folder / "server")
        self._server.start()
        self.settings = Settings(redis_url=self._server.url)
        self.env = {"PYTHONPATH": points.path(self.folder), **self.settings.environment()}
        self.ports: list[int] = []
        for words, flag in (
            (("worker", "agent"), "--metrics-port"),
            (("worker", "model", "--model", "scripted"), "--metrics-port"),
            (("metrics",), "--port"),
        ):
            self.ports.append(free_port())
            log = self.folder / f"{words[-1]}.log"
            self._children.append(ChildProcess(gymq(*words, flag, self.ports[-1]), self.env, words[-1], log))
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
        self._server.stop()

    def produce(self, name: str, count: int) -> subprocess.Popen[bytes]:
        """Enqueue rollouts, all at once, as a run of its own."""
        path = self.folder / f"{name}.jsonl"
        path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for _, row in rows(count, 2, "bench_slow")))
        argv = gymq("produce", "bench_slow", "--data", path, "--run", name, "--model", "scripted", "--concurrency", 8192)
        with path.with_suffix(".log").open("wb") as log:
            return subprocess.Popen(argv, env={**os.environ, **self.env}, stdout=log, stderr=log)

    def statuses(self, name: str) -> dict[str, int]:
        """Return how a run's rollouts ended: counts by status."""

        async def ask() -> dict[str, int]:
            async with Shards(self.settings, "bench") as shards:
                with suppress(UnknownName):  # its producer has not made it yet
                    return dict((await shards.status(name)).by_status)
            return {}

        return asyncio.run(ask())
