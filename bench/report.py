"""The tables: on the terminal, and as Markdown for the README."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.machine import line, when
from bench.scenarios import queue_times

#: A table: its title, its columns, its rows.
Sheet = tuple[str, list[str], list[list[str]]]

#: What the bench wants of W1 and W2: rollouts per second at least, milliseconds of CPU per rollout at most.
TARGETS = {"w1": (1200, 1.6), "w2": (600, 3.0)}


def sheets(found: dict[str, Any]) -> Iterator[Sheet]:
    """The tables of what was measured."""
    throughput = [name for name in ("w1", "w2") if name in found]
    if throughput:
        yield _rates(found, throughput)
        yield _cpu(found, throughput)
    runs = {name: found[name]["runs"] for name in ("w1", "w2", "w3") if name in found}
    if runs:
        yield _server(runs)
        yield _queues(runs)
        yield _memory(runs)
    if "w3" in found:
        yield _w3(found["w3"])
    if "flat" in found:
        yield _flat(found["flat"])
    if "turns" in found:
        yield _turns(found["turns"])
    if "scale" in found:
        yield _scale(found["scale"])
    if "hang" in found:
        yield _hang(found["hang"])


def _rates(found: dict[str, Any], names: list[str]) -> Sheet:
    columns = ["", "rollouts/s", "lowest to highest", "all-in", "CPU ms/rollout", "mock's CPU", "target", "cores of others"]
    rows = []
    for name in names:
        one, (rate, cpu) = found[name], TARGETS[name]
        spread = f"{one['lowest_rate']:,.0f} to {one['highest_rate']:,.0f}"
        target = f"≥ {rate:,}, ≤ {cpu:g} ms"
        rows.append([name.upper(), f"{one['rate']:,.0f}", spread, f"{one['all_in']:,.0f}", f"{one['cpu']:.3f}"])
        rows[-1] += [f"{one['cpu_mock']:.3f}" if one["cpu_mock"] else "", target, f"{one['others']:.2f}"]
    for mode, one in found["calibration"].items():
        spread = f"{one['lowest_rate']:,.0f} to {one['highest_rate']:,.0f}"
        rows.append(
            [f"bare actors, {mode}", f"{one['rate']:,.0f}", spread, "", f"{one['cpu']:.3f}", "", "", f"{one['others']:.2f}"]
        )
    for name in names:
        for mode, ratio in found[name]["ratio"].items():
            rows.append(
                [f"{name.upper()} / bare {mode}", f"{ratio['rate']:.2f} x", "", "", f"{ratio['cpu']:.2f} x", "", "", ""]
            )
    return f"Throughput: median of {len(found[names[0]]['runs'])}", columns, rows


def _cpu(found: dict[str, Any], names: list[str]) -> Sheet:
    columns = ["CPU ms/rollout", "server", "agent", "model", "resource", "producer", "sink"]
    rows = []
    some = {name.upper(): found[name] for name in names}
    some |= {f"bare actors, {mode}": one for mode, one in found["calibration"].items()}
    for name, one in some.items():
        by_process = one["cpu_by_process"]
        rows.append([name, *[f"{by_process[role]:.3f}" if role in by_process else "" for role in columns[1:]]])
    return "CPU by process", columns, rows


def _server(runs: dict[str, list[Any]]) -> Sheet:
    columns = ["per rollout", "commands", "EVALSHA", "XREADGROUP", "bytes in", "bytes out", "AOF bytes", "JSONL bytes"]
    rows = []
    for name, some in runs.items():
        used, checked = some[-1].used, some[-1].checked
        row = [name.upper(), f"{used.commands:.1f}", f"{used.scripts:.2f}", f"{used.reads:.2f}"]
        row += [f"{used.bytes_in:,.0f}", f"{used.bytes_out:,.0f}", f"{used.aof:,.0f}"]
        rows.append([*row, f"{checked.bytes / checked.rollouts:,.0f}"])
    return "Server", columns, rows


def _queues(runs: dict[str, list[Any]]) -> Sheet:
    kinds = ("generate", "tool", "verify")
    columns = ["ms, p50 / p99", *kinds]
    rows = []
    for name, some in runs.items():
        times = queue_times(some)
        rows.append([name.upper(), *[f"{times[kind][0]:.1f} / {times[kind][1]:.1f}" for kind in kinds]])
    return "Queue time: from sent to started", columns, rows


def _memory(runs: dict[str, list[Any]]) -> Sheet:
    roles = ["server", "agent", "model", "resource", "producer", "sink"]
    columns = ["peak RSS, MB", *roles, "used_memory_peak"]
    rows = []
    for name, some in runs.items():
        peaks = [f"{max(run.used.peak_mb[role] for run in some):,.0f}" for role in roles]
        rows.append([name.upper(), *peaks, f"{max(run.used.server_peak_mb for run in some):,.0f}"])
    return "Memory: the largest process of each role", columns, rows


def _w3(one: dict[str, Any]) -> Sheet:
    run = one["runs"][0]
    rows = [
        ["rollouts, each checked, none twice", f"{run.checked.rollouts:,}"],
        ["in flight, median / most", f"{one['in_flight']['median']:,.0f} / {one['in_flight']['most']:,}"],
        ["rollouts/s, ideal", f"{one['ideal']:,.0f}"],
        ["rollouts/s, first start to last end", f"{run.rate:,.0f} ({one['share']:.0%})"],
        ["rollouts/s, without the first and last tenth", f"{run.checked.middle_rate:,.0f} ({one['share_in_the_middle']:.0%})"],
        ["workers that joined / left by SIGTERM", f"{one['joined']} / {one['left']}"],
        ["CPU ms/rollout, starts of workers included", f"{run.cpu:.3f}"],
        ["cores that were busy with something else", f"{run.used.others:.2f}"],
    ]
    return "W3: 5,000 conversations, 2 s a model call, workers come and go", ["", ""], rows


def _flat(one: dict[str, Any]) -> Sheet:
    rows = []
    for count, some in one["by_count"].items():
        run = some["runs"][-1]
        peaks = f"{run.used.peak_mb['agent']:,.0f} / {run.used.server_peak_mb:,.0f}"
        rows.append([f"{int(count):,}", f"{some['rate']:,.0f}", f"{some['cpu']:.3f}", peaks])
    rows.append(["last / first", f"{one['rate_ratio']:.2f} x", f"{one['cpu_ratio']:.2f} x", ""])
    columns = ["rollouts", "rollouts/s", "CPU ms/rollout", "peak MB, agent / server"]
    return "Flatness, W1", columns, rows


def _turns(one: dict[str, Any]) -> Sheet:
    rows = []
    for number, some in one["by_turns"].items():
        cpu = some["cpu"]
        row = [number, f"{some['rate'] * int(number):,.0f}", f"{cpu:.3f}", f"{cpu / int(number):.3f}"]
        rows.append([*row, f"{one['deviation'][number]:+.1%}"])
    further = one["ms_per_further_turn"]
    rows.append(["a further turn, 2 to 10", "", "", f"{further['2 to 10']:.3f}", ""])
    rows.append(["a further turn, 10 to 50", "", "", f"{further['10 to 50']:.3f}", f"{further['ratio'] - 1:+.1%}"])
    return "Turns, W1", ["turns", "turns/s", "CPU ms/rollout", "CPU ms/turn", "off a line"], rows


def _scale(one: dict[str, Any]) -> Sheet:
    rows = []
    for number, some in one["by_workers"].items():
        run = some["runs"][0]
        rows.append([number, f"{run.rate:,.0f}", f"{some['ideal']:,.0f}", f"{some['share']:.0%}", f"{run.cpu:.3f}"])
    rows.append(["last / first", f"{one['speedup']:.2f} x", "", "", ""])
    columns = ["agent and resource workers", "rollouts/s", "ideal", "share", "CPU ms/rollout"]
    return "Scale: a tool that takes 0.5 s, 100 calls in flight per resource worker", columns, rows


def _hang(one: dict[str, Any]) -> Sheet:
    rows = []
    for kind in ("calm", "spinning"):
        some = one[kind]
        times = queue_times(some["runs"])
        queued = [f"{times[name][0]:.1f} / {times[name][1]:.1f}" for name in ("generate", "tool")]
        rows.append([kind, f"{some['lasted'][0]:.0f} / {some['lasted'][1]:.0f}", *queued, f"{some['rate']:,.0f}"])
    rows.append(["p99, spinning / calm", f"{one['p99_ratio']:.2f} x", "", "", ""])
    columns = ["ms, p50 / p99", "a rollout", "generate waits", "tool waits", "rollouts/s"]
    return "Neighbours of tools that spin until they are killed", columns, rows


def show(some: Iterable[Sheet], console: Console) -> None:
    """Print tables."""
    for title, columns, rows in some:
        table = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left", no_wrap=not i)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown(some: Iterable[Sheet]) -> str:
    """The same for a README."""
    lines: list[str] = []
    for title, columns, rows in some:
        lines += [f"**{title}**", ""]
        lines += ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def write(found: dict[str, Any], readme: Path) -> None:
    """Put machine, command and tables under the README's heading `Results`."""
    told = when(found["command"], found["began"], found["seconds"], found["load_before"])
    others = [run.used.others for name in ("w1", "w2") if name in found for run in found[name]["runs"]]
    if others:
        told += f" While W1 and W2 ran, other work kept {min(others):.1f} to {max(others):.1f} of the cores busy."
    replace(readme, "## Results", f"{line(found['machine'])}\n\n{told}\n\n{markdown(sheets(found))}")


def replace(readme: Path, heading: str, text: str) -> None:
    """Put a text under a heading, in place of what stands there up to the next one.

    Args:
        readme: the file.
        heading: the whole line.
        text: what is to stand there.
    """
    head, _, rest = readme.read_text().partition(f"{heading}\n")
    after = re.search(r"^#.*", rest, re.M | re.S)
    readme.write_text(f"{head}{heading}\n\n{text.strip()}\n" + (f"\n{after[0]}" if after else ""))
