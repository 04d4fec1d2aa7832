"""`python -m bench.programs [NAME=FOLDER ...]`: what the sandbox costs per program, for several trees of gymq in turn."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

#: Programs in one turn of a tree, and turns: the median is over all of them.
PROGRAMS, TURNS = 20, 10

#: Runs programs, and prints milliseconds of wall clock and CPU of each; argv: walls, how many, the program.
TURN = """
import json, os, resource, sys, time
from gymq.process import sandbox
walls, many, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
getattr(sandbox, "_chosen", None) is not None and sandbox._chosen.append(walls)
getattr(sandbox, "_proven", None) is not None and sandbox._proven.append(walls)
def cpu():
    used = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
    return sum(each.ru_utime + each.ru_stime for each in used)
sandbox.run_program(argv)
found = []
for _ in range(many):
    began, used = time.perf_counter(), cpu()
    ran = sandbox.run_program(argv)
    assert ran.ok and ran.walls == walls, ran
    found.append((1000 * (time.perf_counter() - began), 1000 * (cpu() - used)))
print(json.dumps(found))
"""


def turn(folder: str, walls: str, argv: list[str]) -> list[tuple[float, float]]:
    """Return what each program of a turn took.

    Args:
        folder: the tree of gymq.
        walls: the walls.
        argv: the program.
    """
    command = [sys.executable, "-c", TURN, walls, str(PROGRAMS), *argv]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": folder}, cwd=folder, capture_output=True, check=True)
    return [(wall, cpu) for wall, cpu in json.loads(done.stdout)]


def main() -> None:
    """Read the command line, measure, and print a table."""
    parser = argparse.ArgumentParser(prog="bench.programs", description=__doc__)
    parser.add_argument("trees", nargs="*", metavar="NAME=FOLDER", help="trees of gymq; default: this one")
    trees = dict(given.split("=", 1) for given in parser.parse_args().trees) or {"gymq": str(Path(__file__).parents[1])}
    kinds = {f"`true`, `{walls}`": (walls, ["true"]) for walls in ("namespaces", "uid")}
    kinds["`python -c pass`, `namespaces`"] = ("namespaces", ["python", "-c", "pass"])
    print(f"| program, walls | {' | '.join(f'{name}: ms | CPU ms' for name in trees)} |\n| --- |{' ---: |' * 2 * len(trees)}")
    for title, (walls, argv) in kinds.items():
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
        for _ in range(TURNS):
            for name, folder in trees.items():
                found[name] += turn(folder, walls, argv)
        medians = [statistics.median(one[place] for one in took) for took in found.values() for place in (0, 1)]
        print(f"| {title} | {' | '.join(f'{median:.1f}' for median in medians)} |", flush=True)


if __name__ == "__main__":
    main()
