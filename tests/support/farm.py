"""An installation with the plugin's environments: real workers, a real sink, and ways to kill them at the right moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from gymq.settings import Settings
from gymq.store import runs
from gymq.store.connection import Connection
from gymq.store.run_status import RunStatus
from gymq.store.runs import RunConfig
from gymq.store.topology import parse
from tests.support import rollouts
from tests.support.waiting import wait_until

PLUGIN = Path(__file__).parent / "plugin"
NEXT = Path(__file__).parent / "next"


class Farm:
    """The processes of one test, and what it asks Redis.

    Args:
        spawn: the fixture.
        settings: where Redis is.
        folder: where logs go.
    """

    def __init__(self, spawn: Any, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self._spawn = spawn
        self._folder = folder
        self._started = 0

    def start(self, role: str, processes: int = 2, newer: bool = False, **options: Any) -> subprocess.Popen[bytes]:
        """Start a worker of a role, of this version or of one whose schema is newer; `processes` are an executor's."""
        self._started += 1
        name = f"{role}{self._started}"
        environment = {
            "PYTHONPATH": os.pathsep.join([str(PLUGIN), *([str(NEXT)] if newer else [])]),
            "TMPDIR": str(self._folder),
        }
        log = self._folder / f"{name}.log"
        return rollouts.start_worker(
            self._spawn, self.settings, role, name, log, environment, processes=processes, **options
        )  # fmt: skip

    def start_roles(
        self, environment: str, agents: int = 1, models: int = 1, resources: int = 1
    ) -> dict[str, list[subprocess.Popen[bytes]]]:
        """Start workers that serve an environment and a scripted model, wait for them, and return them by role."""
        started = {
            "agent": [self.start("agent") for _ in range(agents)],
            "model": [self.start("model", model="scripted") for _ in range(models)],
            "resource": [self.start("resource", environments=environment) for _ in range(resources)],
        }
        self.wait_for(agents + models + resources)
        return started

    def sink(self, name: str, out: Path) -> subprocess.Popen[bytes]:
        """Start a sink."""
        argv = [sys.executable, "-m", "gymq.cli", "sink", "jsonl", "--run", name, "--out", str(out), "--consumer", "sink"]
        with (self._folder / "sink.log").open("ab") as log:
            return self._spawn(argv, self.settings.environment(), stdout=log, stderr=subprocess.STDOUT)

    def ask(self, *command: Any) -> Any:
        """Send one command to Redis."""
        return rollouts.ask(self.settings, *command)

    def registered(self) -> dict[str, dict[str, Any]]:
        """The workers in the registry."""
        return rollouts.registered(self.settings)

    def wait_for(self, count: int) -> None:
        """Wait for so many workers."""
        rollouts.wait_for_workers(self.settings, count)

    def produce(self, config: RunConfig, rows: list[dict[str, Any]]) -> None:
        """Enqueue rows, for the consumer `sink`."""
        rollouts.produce(self.settings, config, rows, consumers=["sink"])

    def status(self, name: str) -> RunStatus:
        """How far a run is."""
        return rollouts.status(self.settings, name)

    def cancel(self, name: str) -> int:
        """Cancel a run."""
        return rollouts.with_link(self.settings, lambda connection: runs.cancel(connection, name))

    def finish(self, name: str, out: Path, limit: float = 60) -> list[dict[str, Any]]:
        """Run a sink until the run is done; returns the records, in the order in which they ended."""
        self.sink(name, out)
        wait_until(lambda: self.status(name).state == "done", limit, f"run {name} to be done")
        return records(out)

    # Killing.

    def holds(self, process: subprocess.Popen[bytes]) -> int:
        """How many messages a worker holds."""
        return sum(self._holds(process, self.settings.at(n)) for n in range(len(parse(self.settings.redis_url))))

    def _holds(self, process: subprocess.Popen[bytes], shard: Settings) -> int:
        held, keys = 0, Connection(shard, "test").keys
        for name, info in rollouts.registered(shard).items():
            if info["pid"] == process.pid:
                streams = [key(box) for box in info["mailboxes"] for key in (keys.mailbox, keys.retry)]
                if rollouts.ask(shard, "HEXISTS", keys.private, name):
                    streams.append(keys.private_mailbox(name))
                for stream in streams:
                    held += len(rollouts.ask(shard, "XPENDING", stream, keys.GROUP, "-", "+", 1000, name))
        return held

    def kill_holding(self, process: subprocess.Popen[bytes]) -> int:
        """kill -9 a worker at a moment when it holds calls; returns how many it held when it was dead."""
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            os.kill(process.pid, signal.SIGSTOP)
            if held := self.holds(process):
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                # Its last read may have been answered after it was counted.
                return max(held, self.holds(process))
            os.kill(process.pid, signal.SIGCONT)
            # An agent holds mail for a millisecond at a time: other moments than those of its own rhythm.
            time.sleep(random.uniform(0.002, 0.03))
        raise AssertionError("the worker never held a call")

    def kill_group(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9 a process and its children."""
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def records(out: Path) -> list[dict[str, Any]]:
    """The rollouts in a JSONL file, which may be at its next line."""
    return [json.loads(line) for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def slow_rows(journal: Path, count: int, script: list[Any], **fields: Any) -> list[dict[str, Any]]:
    """Rows of the plugin's environment `slow`: a script of tool calls for each turn, noted in a journal as they run."""
    return [
        {"id": f"t{i}", "prompt": "go", "environment": "slow", "journal": str(journal), "script": script, **fields}
        for i in range(count)
    ]


def journal_lines(path: Path) -> list[list[str]]:
    """Return the words of each line of a journal; none if nothing was written."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def guest_rows(journal: Path, count: int, tool: str, seconds: float = 60) -> list[dict[str, Any]]:
    """Return rows of the plugin's environment `guest`, each with a call of an isolated tool."""
    return [
        {"id": f"t{i}", "prompt": "go", "environment": "guest", "journal": str(journal), "tool": tool, "seconds": seconds}
        for i in range(count)
    ]
