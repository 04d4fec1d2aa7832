"""What `make chaos` measured: each scenario notes its verdict in a file, and `python -m tests.chaos.report` writes the table.

The file is named by GYMQ_CHAOS_RESULTS; without it nothing is noted.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from .checker import Verdict

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"

#: What the table stands behind.
HEADING = "## Measured\n"

COLUMNS = ("scenario", "rollouts", "faults", "lost", "doubled", "failed", "calls", "held", "repeated", "median s", "worst s")


def note(scenario: str, verdict: Verdict, seed: int | None = None, **more: Any) -> None:
    """Add a scenario's verdict to the file.

    Args:
        scenario: what it is called in the table.
        verdict: what the checker found.
        seed: of its faults, if it has one.
        more: faults that the driver does not know, by name, and how many.
    """
    verdict.faults |= more
    print(f"{scenario}: {verdict}")
    place = os.environ.get("GYMQ_CHAOS_RESULTS")
    if place:
        line = msgspec.json.encode({"scenario": scenario, "seed": seed, **msgspec.to_builtins(verdict)})
        with open(place, "ab") as file:
            file.write(line + b"\n")


def table(found: list[dict[str, Any]]) -> str:
    """The table, and the faults of each scenario."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * (len(COLUMNS) - 1)}"]
    below: list[str] = []
    for one in found:
        times = one["recovered"]
        median, worst = (f"{statistics.median(times):.1f}", f"{times[-1]:.1f}") if times else ("-", "-")
        cells = [one["rollouts"], sum(one["faults"].values()), one["lost"], one["doubled"], one["failed"]]
        cells += [one["calls"], one["held"] or "-", one["repeated"], median, worst]
        lines.append(f"| {one['scenario']} | {' | '.join(map(str, cells))} |")
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(one["faults"].items()))
        seed = f" (seed {one['seed']})" if one["seed"] is not None else ""
        why = ", ".join(f"{count} by {reason}" for reason, count in sorted(one["reasons"].items()))
        below.append(f"* {one['scenario']}{seed}: {faults}.{f' Repeated: {why}.' if why else ''}")
    return "\n".join([*lines, "", *below, ""])


def main() -> None:
    """Put the table of a file of results into the page."""
    found = [msgspec.json.decode(line) for line in Path(sys.argv[1]).read_bytes().splitlines()]
    head, heading, rest = PAGE.read_text().partition(HEADING)
    told, _, _ = rest.partition("\n| ")
    cores = os.cpu_count()
    PAGE.write_text(f"{head}{heading}{told}\n{table(found)}\nMeasured on {cores} cores, Python {sys.version.split()[0]}.\n")


if __name__ == "__main__":
    main()
