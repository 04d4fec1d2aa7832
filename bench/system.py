"""All processes of one measurement: server, workers, mock model, producer and sink."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import redis

from bench import points
from bench.helper import Load
from bench.meter import Meter, Used
from bench.rows import Checked, check
from gymq.celery import worker_command
from gymq.process.child_process import ChildProcess
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.settings import Settings
from gymq.store.keys import Keys

#: Seconds that processes may take to come up, on a machine that has other things to do.
START_LIMIT = 60.0

#: Seconds between two looks at a run that is measured.
LOOK = 0.2

#: Rollouts that pass before the measured ones: workers import an environment, open connections, load scripts.
WARM_UP = 500


class Measured(msgspec.Struct):
    """One measured run.

    Args:
        rate: rollouts per second between the start of the first rollout and the end of the last.
        all_in: rollouts per second between the word to the producer and the end of the sink.
        cpu: milliseconds of CPU for each rollout, all processes but the mock.
        cpu_mock: the same of the mock.
        load: the machine's load over the last minute, before.
        checked: what the file of results says.
        used: what was used.
        extra: what a scenario adds.
    """

    rate: float
    all_in: float
    cpu: float
    cpu_mock: float
    load: float
    checked: Checked
    used: Used
    extra: dict[str, Any] = {}


class System:
    """Server and workers in a folder. Use it as a context manager; what it started is gone afterwards.

    Args:
        folder: for data, logs and results.
        model: `scripted` or `openai:mock`; the latter starts the mock server.
        latency: seconds that a model call takes.
        workers: how many of each role.
        options: by role, options of the workers.
        profile: run each worker's loop under cProfile and keep the result in the folder.
    """

    def __init__(
        self,
        folder: Path,
        model: str = "scripted",
        latency: float = 0.0,
        workers: dict[str, int] | None = None,
        options: dict[str, dict[str, Any]] | None = None,
        profile: bool = False,
    ) -> None:
        self.folder = folder
        self.model = model
        self._latency = latency
        self._workers = workers or {"agent": 1, "model": 1, "resource": 1}
        self._options = options or {}
        self._profile = profile
        self._server = EmbeddedRedis(folder / "server")
        self._mock: ChildProcess | None = None
        self._runs = 0
        #: The run that is measured.
        self.run = ""
        self.children: dict[str, list[ChildProcess]] = {}
        self.env: dict[str, str] = {}

    def __enter__(self) -> System:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._server.start()
        self.settings = Settings(redis_url=self._server.url)
        self.client = redis.Redis.from_url(self._server.url, decode_responses=True)
        self.env = {"PYTHONPATH": points.path(self.folder), "GYMQ_REDIS_URL": self._server.url}
        self.meter = Meter(self.client)
        self.meter.add("server", self._server.pid or 0)
        model = self._options.setdefault("model", {})
        model["model"] = self.model
        if self.model.startswith("openai:"):
            model["base_url"] = self._start_mock()
        elif self._latency:
            model["latency"] = self._latency
        for role, number in self._workers.items():
            for _ in range(number):
                self.add(role)
        _until(lambda: self.registered() >= sum(self._workers.values()), self.failures, "workers do not come up")

    def _start_mock(self) -> str:
        argv = [sys.executable, "-m", "bench.mock_server", "--latency", str(self._latency)]
        mock = self._mock = ChildProcess(argv, self.env, "mock", self.folder / "mock.log")
        self.children["mock"] = [mock]
        _until(lambda: bool(mock.tail(1)), self.failures, "the mock server does not come up")
        self.meter.add("mock", mock.pid)
        return mock.tail(1)[0].removeprefix("listening on ").strip() + "/v1"

    def add(self, role: str) -> ChildProcess:
        """Start one more worker."""
        workers = self.children.setdefault(role, [])
        name = f"{role}{len(workers)}"
        argv, env = worker_command.command(self.settings, role, self._options.get(role, {}), name)
        if self._profile:
            at = argv.index("gymq.cli")
            argv[at : at + 1] = ["bench.profiled", str(self.folder / f"{name}.prof")]
        child = ChildProcess(argv, self.env | env, name, self.folder / f"{name}.log")
        workers.append(child)
        self.meter.add(role, child.pid)
        return child

    def registered(self) -> int:
        """How many workers are up."""
        return int(self.client.hlen(Keys().workers))  # type: ignore[arg-type]

    def failures(self) -> str:
        """What the processes said that ended with an error; empty if none did."""
        dead = [child for children in self.children.values() for child in children if not child.alive and child.code]
        return "\n".join(f"{child.name} ended with {child.code}: " + "\n".join(child.tail(20)) for child in dead)

    def close(self) -> None:
        """End everything."""
        for children in self.children.values():
            for child in children:
                if self._profile and child is not self._mock:
                    child.terminate(20)
                child.kill()
        self._server.stop()

    def measure(
        self,
        count: int,
        concurrency: int,
        *,
        environment: str = "weather",
        turns: int = 2,
        warm_up: int = WARM_UP,
        during: Callable[[float], None] | None = None,
    ) -> Measured:
        """Roll out some tasks, measure it, and check every row.

        Args:
            count: how many.
            concurrency: how many at once.
            environment: in which environment.
            turns: model calls of each.
            warm_up: rollouts before.
            during: called about every `LOOK` seconds with the seconds since the beginning.

        Raises:
            WrongResult: a row is wrong.
            RuntimeError: a process died.
        """
        if warm_up:
            self.measure(warm_up, concurrency, environment=environment, turns=turns, warm_up=0)
        self._runs += 1
        load = Load(f"bench{self._runs}", count, concurrency, self.model, environment, turns)
        self.run = load.run
        path = self.folder / f"{load.run}.jsonl"
        producer, sink = self._helper("produce", load, path), self._helper("sink", load, path)
        try:
            before = os.getloadavg()[0]
            self.meter.start()
            began = time.time()
            for helper in (sink, producer):
                helper.say()
            while not sink.hears("done"):
                if failures := self.failures():
                    raise RuntimeError(failures)
                self.meter.look_at_log()
                if during:
                    self.meter.look()
                    during(time.time() - began)
            ended = time.time()
            producer.expect("done")
            used = self.meter.stop(count)
        finally:
            producer.close()
            sink.close()
        checked = check(path, load.run, count, turns)
        path.unlink()
        self._count_commits(load)
        mock = used.cpu.pop("mock", 0.0)
        rate = count / (checked.finished - checked.started)
        return Measured(rate, count / (ended - began), sum(used.cpu.values()), mock, before, checked, used)

    @contextmanager
    def beside(self, count: int, concurrency: int, environment: str) -> Iterator[None]:
        """Another run, whose results nobody reads, that goes on while something else is measured."""
        self._runs += 1
        load = Load(f"beside{self._runs}", count, concurrency, self.model, environment)
        producer = self._helper("produce", load, self.folder)
        try:
            producer.say()
            producer.expect("done")
            yield
        finally:
            producer.close()

    def _count_commits(self, load: Load) -> None:
        """What Redis counted, before any sink could have dropped a repetition."""
        run = Keys().run(load.run)
        ended = int(self.client.hget(run, "ended") or 0)  # type: ignore[arg-type]
        if ended != load.count:
            raise RuntimeError(f"{ended} final commits for {load.count} rollouts")

    def _helper(self, kind: str, load: Load, path: Path) -> _Helper:
        helper = _Helper([sys.executable, "-m", "bench.helper", kind, msgspec.json.encode(load).decode(), str(path)], self.env)
        helper.expect("ready")
        self.meter.add("producer" if kind == "produce" else "sink", helper.process.pid)
        return helper


class _Helper:
    """A producer or a sink."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv, env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def say(self) -> None:
        """Tell it to begin."""
        assert self.process.stdin
        self.process.stdin.write("go\n")

    def hears(self, word: str, wait: float = LOOK) -> bool:
        """Whether it says a word within some seconds."""
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], wait)[0]:
            return False
        self.expect(word)
        return True

    def expect(self, word: str) -> None:
        """Wait for a word."""
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if line != word:
            raise RuntimeError(f"{self.process.args}: said {line!r} instead of {word!r}")

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _until(there: Callable[[], bool], failures: Callable[[], str], what: str) -> None:
    limit = time.monotonic() + START_LIMIT
    while not there():
        if (why := failures()) or time.monotonic() > limit:
            raise RuntimeError(f"{what}: {why or f'{START_LIMIT:g} s are over'}")
        time.sleep(0.05)
