"""A small installation for tests: real workers, a real sink, and questions to Redis."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from gymq import keys, worker
from gymq.link import Link
from gymq.producer import Producer
from gymq.run import RunConfig, cancel, status
from gymq.settings import Settings
from tests.support.redis_server import wait_until

PLUGIN = Path(__file__).parent / "plugin"

SINK = """
import asyncio, sys
from pathlib import Path
from gymq.settings import Settings
from gymq.sink import feed
from gymq_sinks.jsonl import JsonlSink
asyncio.run(feed(JsonlSink(Path(sys.argv[1]), sys.argv[2]), "sink", Settings.from_environment(), asyncio.Event()))
"""


class Farm:
    """The processes of one test, and what it asks Redis."""

    def __init__(self, spawn, settings: Settings, tmp_path: Path) -> None:
        self.spawn = spawn
        self.settings = settings
        self.folder = tmp_path
        self.started = 0

    def start(self, role: str, processes: int = 2, **options) -> subprocess.Popen:
        """Start a worker of a role."""
        self.started += 1
        argv, environment = worker.command(self.settings, role, options, f"{role}{self.started}", processes=processes)
        return self._spawn(argv, environment, role)

    def sink(self, run: str, out: Path) -> subprocess.Popen:
        return self._spawn([sys.executable, "-c", SINK, str(out), run], {"GYMQ_REDIS_URL": self.settings.redis_url}, "sink")

    def _spawn(self, argv: list[str], environment: dict[str, str], name: str) -> subprocess.Popen:
        environment = environment | {"PYTHONPATH": str(PLUGIN)}
        with (self.folder / f"{name}{self.started}.log").open("w") as log:
            return self.spawn(argv, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT)

    def ask(self, *command):
        """Send one command to Redis."""
        return self._with_link(lambda link: link.send(*command))

    def registered(self) -> dict[str, dict]:
        flat = self.ask("HGETALL", keys.WORKERS)
        return {
            name.decode(): msgspec.json.decode(info.removeprefix(b"dead"))
            for name, info in zip(flat[::2], flat[1::2], strict=True)
        }

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.registered()) >= count, 30, "workers in the registry")

    def holds(self, process: subprocess.Popen) -> int:
        """How many messages a worker holds."""
        held = 0
        for name, info in self.registered().items():
            if info["pid"] == process.pid:
                for box in info["mailboxes"]:
                    for stream in (keys.mailbox(box), keys.retry(box)):
                        held += len(self.ask("XPENDING", stream, keys.GROUP, "-", "+", 1000, name))
        return held

    def kill_group(self, process: subprocess.Popen) -> None:
        """kill -9 a process and its children."""
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()

    def kill_holding(self, process: subprocess.Popen) -> int:
        """kill -9 a worker at a moment when it holds calls."""
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            os.kill(process.pid, signal.SIGSTOP)
            held = self.holds(process)
            if held:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return held
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.05)
        raise AssertionError("the worker never held a call")

    def produce(self, config: RunConfig, rows: list[dict]) -> None:
        os.environ["GYMQ_REDIS_URL"] = self.settings.redis_url
        producer = Producer(self.settings, config, "rows", on_bad=pytest.fail)
        producer._announce = lambda chunk: None  # the app of this process may be bound to another server
        asyncio.run(producer.run(((f"rows:{i}", row) for i, row in enumerate(rows, 1)), consumers=["sink"]))

    def status(self, run: str):
        """How far a run is."""
        return self._with_link(lambda link: status(link, run))

    def cancel(self, run: str) -> int:
        """Cancel a run."""
        return self._with_link(lambda link: cancel(link, run))

    def _with_link(self, do):
        async def once():
            link = Link(self.settings, "test")
            await link.connect()
            try:
                return await do(link)
            finally:
                await link.close()

        return asyncio.run(once())

    def finish(self, run: str, out: Path, limit: float = 60) -> list[dict]:
        """Run a sink until the run is done; returns the records, in the order in which they ended."""
        self.sink(run, out)
        wait_until(lambda: self.status(run).state == "done", limit, f"run {run} to be done")
        return records(out)


def records(out: Path) -> list[dict]:
    """The rollouts in a JSONL file."""
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def slow_rows(journal: Path, count: int, script: list, **fields) -> list[dict]:
    return [
        {"id": f"t{i}", "prompt": "go", "environment": "slow", "journal": str(journal), "script": script, **fields}
        for i in range(count)
    ]
