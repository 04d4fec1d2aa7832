"""An installation with two of each role that is kept running while workers, sinks and the producer are killed and stopped."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gymq.celery import worker_command
from gymq.ops.fault_injection import FaultInjector, InjectedFault
from gymq.settings import Settings
from gymq.store.topology import parse
from tests.support import rollouts
from tests.support.farm import PLUGIN
from tests.support.waiting import wait_until

from .trace import Trace

#: Mean seconds between two faults of workers: they come every 1 to 2 s.
EVERY = 1.5

#: Mean seconds between two faults of the producer and the sinks.
EVERY_OTHER = 4.0

#: Seconds after which a dead process is started again: as quick as any supervisor.
RESTART = 0.2

#: Seconds that a tool or an answer of the model takes: long enough to be held by somebody who dies.
SECONDS = 0.2

#: Rollouts of the first scenario when all is done in full, which `make chaos` asks for; 0: the suite's short form.
FULL = int(os.environ.get("GYMQ_CHAOS_ROLLOUTS") or 0)

#: Conversations stay with their replica, and live sessions with their resource worker: both have private mailboxes.
MODEL = "homely"

OPTIONS = {"model": {"model": MODEL}, "resource": {"environments": "everything"}}


class Place:
    """One process, started again when it dies.

    Args:
        argv, env: how it is started.
        log: gets its output.
        ends: exit code 0 is its good end.
    """

    def __init__(self, argv: list[str], env: dict[str, str], log: Path, ends: bool = False) -> None:
        self.argv, self.env, self.log, self.ends = argv, env, log, ends
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.died = 0.0

    @property
    def over(self) -> bool:
        """Whether it had its good end."""
        return self.ends and self.process is not None and self.process.poll() == 0

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self.process is not None and self.process.poll() is None


class Driver:
    """The processes of one run.

    Args:
        spawn: the fixture.
        settings: where Redis is.
        folder: for logs, rows and results.
        run: the run's name.
        rows: how many rollouts.
        seed: of all that is random.
    """

    def __init__(self, spawn: Any, settings: Settings, folder: Path, run: str, rows: int, seed: int) -> None:
        self.settings, self.folder, self.run, self.rows, self.seed = settings, folder, run, rows, seed
        self.journal = folder / "journal"
        self.data = folder / "rows.jsonl"
        self.sinks = {"lines": folder / "out.jsonl", "parts": folder / "parts"}
        self.places: dict[str, Place] = {}
        self.faults: list[InjectedFault] = []
        self.trace: Trace | None = None
        self._spawn = spawn
        self._actors = 0
        self._random = random.Random(seed)
        write_rows(self.data, rows, self.journal)

    def add_workers(
        self, each: int = 2, kin: str = "", settings: Settings | None = None, env: dict[str, str] | None = None
    ) -> None:
        """Start workers of each role, and wait until they take mail.

        Args:
            each: of each role.
            kin: distinguishes them from those that were started before.
            settings: how they reach Redis; None: as all others.
            env: further variables of them.
        """
        for role in worker_command.ROLES:
            for number in range(each):
                name = f"{role}{kin}{number}"
                argv, ours = worker_command.command(settings or self.settings, role, OPTIONS.get(role, {}), name)
                # These come last, so that they win over what all processes of the run get.
                self._add(name, argv, ours | (settings.environment() if settings else {}) | (env or {}))
        self._actors += 3 * each
        for shard in range(len(parse(self.settings.redis_url))):
            rollouts.wait_for_workers(self.settings.at(shard), self._actors)

    def add_sinks(self) -> None:
        """Start two sinks, each with a consumer of its own."""
        for consumer, kind in (("lines", "jsonl"), ("parts", "parquet")):
            argv = ["sink", kind, "--run", self.run, "--out", str(self.sinks[consumer]), "--consumer", consumer]
            self._add(f"sink-{kind}", [sys.executable, "-m", "gymq.cli", *argv], {}, ends=True)

    def add_producer(self, pause: float = 0.0, concurrency: int = 32) -> None:
        """Start the producer, which reads so slowly that it can be killed in the middle of its file."""
        argv = ["produce", "everything", "--data", f"slowly:{pause}:{self.data}", "--run", self.run, "--model", MODEL]
        argv += ["--concurrency", str(concurrency), "--consumer", "lines", "--consumer", "parts"]
        self._add("producer", [sys.executable, "-m", "gymq.cli", *argv], {}, ends=True)

    def _add(self, name: str, argv: list[str], env: dict[str, str], ends: bool = False) -> None:
        ours = {"GYMQ_REDIS_URL": self.settings.redis_url, "GYMQ_LIVENESS": f"{self.settings.liveness:g}"}
        ours["PYTHONPATH"] = str(PLUGIN)
        self.places[name] = Place(argv, ours | env, self.folder / f"{name}.log", ends)
        self._start(self.places[name])

    def _start(self, place: Place) -> None:
        place.starts += 1
        with place.log.open("ab") as log:
            place.process = self._spawn(place.argv, place.env, stdout=log, stderr=subprocess.STDOUT)

    # Running.

    def drive(self, limit: float, workers: bool = True, others: bool = True) -> None:
        """Strike until the run is done; everybody who dies is started again.

        Raises:
            AssertionError: the run is not done within `limit` seconds.
        """
        print(f"seed {self.seed}")
        asyncio.run(self._drive(limit, workers, others))

    def done(self) -> bool:
        """Whether the run is done."""
        try:
            return rollouts.status(self.settings, self.run).state == "done"
        except Exception:  # not created yet, or no server at the moment
            return False

    async def _drive(self, limit: float, workers: bool, others: bool) -> None:
        stop = asyncio.Event()
        # What is handed back is traced on one server.
        traced = workers and len(parse(self.settings.redis_url)) == 1
        self.trace = Trace(self.settings.redis_url) if traced else None
        jobs = [asyncio.create_task(self._supervise(stop))]
        if workers:
            chaos = FaultInjector(self.settings, seed=self.seed, every=EVERY, last=False)
            self.faults = chaos.faults
            jobs.append(asyncio.create_task(chaos.run(stop)))
        if others:
            jobs.append(asyncio.create_task(self._strike_others(stop)))
        until = time.monotonic() + limit
        while not await asyncio.to_thread(self.done):
            if time.monotonic() > until:
                raise AssertionError(f"the run is not done within {limit:g} s: {self.state()}")
            for job in jobs:
                if job.done():
                    job.result()
            await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*jobs)
        if self.trace is not None:
            self.trace.close()
        wait_until(lambda: all(place.over for place in self.places.values() if place.ends), 30, "sinks and producer to end")

    async def _supervise(self, stop: asyncio.Event) -> None:
        while not stop.is_set() or any(place.ends and not place.over for place in self.places.values()):
            for place in self.places.values():
                if not place.running and not place.over:
                    place.died = place.died or time.monotonic()
                    if time.monotonic() - place.died >= RESTART:
                        place.died = 0.0
                        self._start(place)
            await asyncio.sleep(0.1)

    async def _strike_others(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), EVERY_OTHER * self._random.uniform(2 / 3, 4 / 3))
                return
            name = self._random.choice(sorted(name for name, place in self.places.items() if place.ends))
            kind = self._random.choice(["kill", "stop"])
            process = self.places[name].process
            if process is None or process.poll() is not None:
                continue
            self.faults.append(InjectedFault(time.time(), kind, name.partition("-")[0], (name,), process.pid))
            if kind == "kill":
                process.kill()
            else:
                os.kill(process.pid, signal.SIGSTOP)
                await asyncio.sleep(2 * self.settings.liveness)
                os.kill(process.pid, signal.SIGCONT)

    def state(self) -> str:
        """Where the run stands, for an error."""
        lines = [f"{name}: {place.starts} starts, running {place.running}" for name, place in self.places.items()]
        with suppress(Exception):
            lines.append(str(rollouts.status(self.settings, self.run)))
        return "; ".join(lines)


def write_rows(path: Path, count: int, journal: Path) -> None:
    """Rows of the environment `everything`."""
    with path.open("w") as file:
        for i in range(count):
            row = {"id": f"t{i}", "prompt": "go", "journal": str(journal), "seconds": SECONDS}
            file.write(json.dumps(row) + "\n")


def until_some(driver: Driver, ended: int, limit: float = 60) -> None:
    """Wait until so many rollouts have ended, without striking anybody."""

    def there() -> bool:
        with suppress(Exception):
            return rollouts.status(driver.settings, driver.run).ended >= ended
        return False

    wait_until(there, limit, f"{ended} rollouts of {driver.run}")
