"""`python -m bench.autoscale`: replicas of a role follow a bursty load, by KEDA's queries and Kubernetes' formula alone.

This plays KEDA on one machine: a real Prometheus scrapes `gymq worker` and `gymq metrics` processes, the queries of
deploy/kubernetes/components/keda are asked, `bench/hpa.py` decides, and resource workers are started and drained. Nothing
else is looked at: neither the load's schedule nor Redis. Windows and periods pass `--speed` times faster than real.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from bench import report
from bench.chart import Line, Panel, chart
from bench.environment import WAIT
from bench.hpa import Autoscaler, ScaledObject, scaled_objects
from bench.machine import line, machine, now, when
from bench.prometheus import Prometheus
from bench.replicas import SLOTS, Installation, Replicas
from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parent.parent

#: What is played.
SCALED = ROOT / "deploy/kubernetes/components/keda/scaledobjects.yaml"

#: The load: seconds from the beginning, and rollouts that come then, all at once.
BURSTS = ((10.0, 200), (40.0, 6000), (150.0, 2000))

#: Most replicas: what two cores still carry beside everything else.
MOST = 8

#: Seconds after which a run that has not ended is given up.
LIMIT = 900.0

#: Seconds between two readings of the curve.
READ = 1.0

#: What the curve shows beside the replicas: columns, and the expressions that give them.
READINGS = {
    "waiting": 'sum(gymq_mailbox_waiting{role="resource"})',
    "in_work": 'sum(gymq_worker_held{role="resource"})',
    "ready": 'sum(gymq_worker_ready{role="resource"})',
    "ended": "sum(gymq_rollouts_total)",
}


class Sample(msgspec.Struct):
    """The curve at one time: seconds, messages, the triggers' numbers, replicas that were told to run, and that work."""

    time: float
    waiting: float
    in_work: float
    ended: float
    numbers: list[float]
    replicas: int
    ready: float


@contextmanager
def played(folder: Path, scaled: ScaledObject) -> Iterator[tuple[Installation, Replicas, Prometheus]]:
    """Start everything, with the fewest replicas that are allowed."""
    with Installation(folder) as installation, Prometheus(folder, free_port()) as prometheus:
        replicas = Replicas(folder, installation.env)
        try:
            replicas.scale(scaled.min_replica_count)
            prometheus.scrape([*installation.ports, *replicas.ports()])
            limit = time.monotonic() + 60
            while prometheus.number(READINGS["ready"]) != scaled.min_replica_count:
                if time.monotonic() > limit:
                    raise RuntimeError(f"no worker is ready; the logs are in {folder}")
                time.sleep(0.2)
            yield installation, replicas, prometheus
        finally:
            replicas.kill()


def measure(
    folder: Path, scaled: ScaledObject, bursts: tuple[tuple[float, int], ...], speed: float, say: Any
) -> dict[str, Any]:
    """Play the autoscaler while bursts come, until all has ended and the replicas are as few as at the beginning.

    Args:
        folder: for data and logs.
        scaled: what the autoscaler is told.
        bursts: when, and how many rollouts.
        speed: how many times faster than real the autoscaler's time passes.
        say: told what happens.

    Raises:
        RuntimeError: a process died, or the time is over.
    """
    with played(folder, scaled) as (installation, replicas, prometheus):
        autoscaler = Autoscaler(scaled, speed)
        samples: list[Sample] = []
        producers: dict[str, subprocess.Popen[bytes]] = {}
        ended_at: dict[str, float] = {}
        numbers = [0.0] * len(scaled.triggers)
        began = polled = time.monotonic()
        total = sum(count for _, count in bursts)
        while True:
            at = time.monotonic() - began
            for n, (due, count) in enumerate(bursts):
                if at >= due and f"burst{n}" not in producers:
                    producers[f"burst{n}"] = installation.produce(f"burst{n}", count)
                    say(f"{at:.0f} s: {count} rollouts")
            if time.monotonic() >= polled:
                polled += scaled.polling_interval / speed
                found = [prometheus.number(trigger.query) for trigger in scaled.triggers]
                # Without an answer it stays as it is, as KEDA does.
                if None not in found:
                    numbers = [number for number in found if number is not None]
                    ready = int(prometheus.number(READINGS["ready"]) or 0)
                    count = len(replicas.running)
                    wanted = autoscaler.decide(time.monotonic(), count, ready, numbers)
                    if wanted != count:
                        say(f"{at:.0f} s: backlog {numbers[0]:.1f} s, busy {numbers[1]:.0%}: {count} → {wanted} replicas")
                        replicas.scale(wanted)
            prometheus.scrape([*installation.ports, *replicas.ports()])
            if not samples or at - samples[-1].time >= READ:
                read = {name: prometheus.number(query) or 0.0 for name, query in READINGS.items()}
                samples.append(Sample(round(at, 2), numbers=list(numbers), replicas=len(replicas.running), **read))
                done = [name for name in producers if sum(installation.statuses(name).values()) == dict_of(bursts)[name]]
                for name in done:
                    ended_at.setdefault(name, at)
                if len(ended_at) == len(bursts) and len(replicas.running) == scaled.min_replica_count:
                    break
            if at > LIMIT:
                raise RuntimeError(f"{len(ended_at)} of {len(bursts)} bursts have ended after {LIMIT:g} s")
            time.sleep(0.05)
        replicas.scale(0)
        while replicas.ports():
            time.sleep(0.1)
        statuses = [installation.statuses(f"burst{n}") for n in range(len(bursts))]
    if any(code for code in replicas.codes) or statuses != [{"completed": count} for _, count in bursts]:
        raise RuntimeError(f"exit codes {replicas.codes}, rollouts {statuses}")
    seconds = [ended_at[f"burst{n}"] - due for n, (due, _) in enumerate(bursts)]
    return {
        "samples": samples,
        "bursts": [{"at": due, "rollouts": count, "seconds": took} for (due, count), took in zip(bursts, seconds, strict=True)],
        "drained": len(replicas.codes),
        "replica_seconds": sum(sample.replicas for sample in samples) * samples[-1].time / len(samples),
        "most": max(sample.replicas for sample in samples),
        "rollouts": total,
    }


def dict_of(bursts: tuple[tuple[float, int], ...]) -> dict[str, int]:
    """Return the rollouts of each burst, by its run's name."""
    return {f"burst{n}": count for n, (_, count) in enumerate(bursts)}


def picture(found: dict[str, Any]) -> str:
    """Draw the curve."""
    samples: list[Sample] = found["samples"]
    return chart(
        [sample.time for sample in samples],
        [
            Panel(
                "calls of the resource workers",
                [Line("waiting", [s.waiting for s in samples]), Line("in work", [s.in_work for s in samples])],
            ),
            Panel(
                "replicas",
                [Line("wanted", [s.replicas for s in samples], True), Line("ready", [s.ready for s in samples], True)],
            ),
            Panel("backlog, seconds", [Line("backlog", [s.numbers[0] for s in samples])]),
        ],
        [(burst["at"], f"{burst['rollouts']:,} rollouts") for burst in found["bursts"]],
    )


def sheets(found: dict[str, Any]) -> Iterator[report.Sheet]:
    """The tables: the bursts, and the curve every ten seconds."""

    def alone_and_full(count: int) -> list[str]:
        return [f"{count * WAIT / SLOTS / replicas:.0f}" for replicas in (1, found["most"])]

    columns = [
        "burst",
        "at, s",
        "rollouts",
        "ended after, s",
        "one replica would need, s",
        f"{found['most']} from the start, s",
    ]
    table = [
        [str(n + 1), f"{one['at']:.0f}", f"{one['rollouts']:,}", f"{one['seconds']:.0f}", *alone_and_full(one["rollouts"])]
        for n, one in enumerate(found["bursts"])
    ]
    yield "Bursts", columns, table
    samples: list[Sample] = found["samples"]
    curve = [samples[0]]
    for sample in samples:
        if sample.time >= curve[-1].time + 10:
            curve.append(sample)
    numbers = [
        [f"{s.time:.0f}", f"{s.waiting:,.0f}", f"{s.in_work:,.0f}", f"{s.numbers[0]:.1f}", f"{s.numbers[1]:.0%}", *two]
        for s in curve
        for two in [[str(s.replicas), f"{s.ready:.0f}"]]
    ]
    yield "The curve", ["s", "waiting", "in work", "backlog, s", "busy", "replicas wanted", "ready"], numbers


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="bench.autoscale", description="Play KEDA on this machine under a bursty load.")
    parser.add_argument("--speed", type=float, default=4.0, help="how many times faster the autoscaler's time passes")
    parser.add_argument("--readme", action="store_true", help="put tables and picture into bench/")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    scaled = msgspec.structs.replace(scaled_objects(SCALED)["resource"], max_replica_count=MOST)
    found: dict[str, Any] = {
        "machine": machine("celery", "redis"),
        "command": ["python", "-m", "bench.autoscale", *sys.argv[1:]],
    }
    found |= {"began": now(), "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="gymq-bench-") as folder:
        found |= measure(Path(folder), scaled, BURSTS, args.speed, lambda said: console.print(f"[dim]{said}"))
    found["seconds"] = round(found["samples"][-1].time, 1)
    report.show(sheets(found), console)
    if args.readme:
        bench = ROOT / "bench"
        (bench / "autoscale.svg").write_text(picture(found))
        (bench / "autoscale.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
        told = when(found["command"], found["began"], found["seconds"], found["load_before"])
        fixed = found["most"] * found["seconds"]
        told += (
            f" {found['rollouts']:,} rollouts, all completed; {found['drained']} workers were drained, each ended with 0. "
            f"{found['replica_seconds']:,.0f} replica seconds, where {found['most']} all the time would be {fixed:,.0f}."
        )
        text = f"{line(found['machine'])}\n\n{told}\n\n![The curve](autoscale.svg)\n\n{report.markdown(sheets(found))}"
        report.replace(bench / "README.md", "### Autoscaling, measured", text)


if __name__ == "__main__":
    main()
