"""What is measured. Each scenario returns what stands in the JSON file under its name."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from bench.calibration import MODES, calibrate
from bench.environment import SPIN, WAIT
from bench.rows import quantile
from bench.system import Measured, System
from gymq.store.keys import Keys

#: Rollouts in flight in W1, W2 and flatness; a model worker's default is as many calls.
IN_FLIGHT = 512

#: W3: conversations in flight, seconds of a model call, model calls of a rollout, seconds between two changes of workers.
MANY, LATENCY, CALLS, CHANGE = 5000, 2.0, 2, 6.0

#: Flatness: rollouts of the runs that are compared.
COUNTS = (1_000, 10_000, 50_000)

#: Turns: model calls of a rollout, and about how many model calls a run has.
TURNS, TURNS_IN_RUN, TURNS_IN_FLIGHT = (2, 5, 10, 20, 50), 30_000, 256

#: Scale: agent and resource workers, calls that one resource worker has in flight, seconds that a run takes at best.
WORKERS, SLOTS, SCALE_SECONDS = (1, 2, 4), 100, 10

#: Neighbours: rollouts in flight and of a run, model calls of each, seconds of a model call: half of what two cores can do.
#: Beside them two executors' children spin, one per core.
NEIGHBOURS, NEIGHBOURS_IN_RUN, NEIGHBOURS_TURNS, NEIGHBOURS_LATENCY, SPINNERS = 16, 2000, 5, 0.02, 2


class Plan(msgspec.Struct):
    """How much is measured.

    Args:
        repeats: runs of W1, W2 and the calibration; the others run at most three times.
        rollouts: rollouts of one run of W1, W2 and the calibration.
        say: told what happens.
        profile: where profiles go; None: nothing is profiled.
    """

    repeats: int
    rollouts: int
    say: Callable[[str], None]
    profile: Path | None = None


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gymq-bench-") as name:
        yield Path(name)


def _once(plan: Plan, model: str, count: int) -> Measured:
    with _folder() as folder:
        with System(folder, model, profile=plan.profile is not None) as system:
            measured = system.measure(count, IN_FLIGHT)
        if plan.profile:
            plan.profile.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.prof"):
                shutil.copy(path, plan.profile / f"{model.partition(':')[0]}-{path.name}")
    return measured


def throughput(plan: Plan, which: list[str]) -> dict[str, Any]:
    """W1 and W2 in turn with the calibration."""
    models = {"w1": "scripted", "w2": "openai:mock"}
    runs: dict[str, list[Any]] = {name: [] for name in (*which, *MODES)}
    for i in range(plan.repeats):
        for name in which:
            measured = _once(plan, models[name], plan.rollouts)
            runs[name].append(measured)
            plan.say(f"{name} {i + 1}/{plan.repeats}: {measured.rate:,.0f} rollouts/s, {measured.cpu:.3f} ms")
        for mode in MODES:
            with _folder() as folder:
                calibrated = calibrate(folder, plan.rollouts, IN_FLIGHT, mode)
            runs[mode].append(calibrated)
            plan.say(f"bare {mode} {i + 1}/{plan.repeats}: {calibrated.rate:,.0f} rollouts/s, {calibrated.cpu:.3f} ms")
    found: dict[str, Any] = {name: _medians(runs[name]) for name in which}
    found["calibration"] = {mode: _medians(runs[mode]) for mode in MODES}
    for name in which:
        found[name]["ratio"] = {
            mode: {key: found[name][key] / found["calibration"][mode][key] for key in ("rate", "cpu")} for mode in MODES
        }
    return found


def w3(plan: Plan) -> dict[str, Any]:
    """Many conversations that wait, while workers come and go."""
    count = MANY * 12
    with _folder() as folder:
        workers = {"agent": 2, "model": 2, "resource": 2}
        with System(folder, "openai:mock", LATENCY, workers, {"model": {"concurrency": MANY}}) as system:
            churn = _Churn(system)
            measured = system.measure(count, MANY, during=churn.look)
            churn.finish()
    ideal = MANY / (LATENCY * CALLS)
    plan.say(f"w3: {measured.rate:,.0f} rollouts/s of {ideal:,.0f}, {churn.joined} joined, {churn.left} left")
    return {
        "runs": [measured],
        "ideal": ideal,
        "share": measured.rate / ideal,
        "share_in_the_middle": measured.checked.middle_rate / ideal,
        "in_flight": {"median": statistics.median(churn.live), "most": max(churn.live)},
        "joined": churn.joined,
        "left": churn.left,
    }


class _Churn:
    """Replaces a worker every few seconds: a new one joins, and when it is there the oldest of its role is asked to go."""

    def __init__(self, system: System) -> None:
        self.live: list[int] = []
        self.joined = 0
        self.left = 0
        self._system = system
        self._asked: list[Any] = []
        self._waiting: tuple[str, int] | None = None
        self._next = CHANGE

    def look(self, elapsed: float) -> None:
        """Called now and then while the run goes on."""
        system = self._system
        self.live.append(int(system.client.scard(Keys().live(system.run))))  # type: ignore[arg-type]
        if self._waiting is not None:
            role, pid = self._waiting
            if any(f'"pid":{pid},' in info for info in system.client.hvals(Keys().workers)):  # type: ignore[union-attr]
                self._waiting = None
                oldest = next(child for child in system.children[role] if child not in self._asked)
                oldest.request_stop()
                self._asked.append(oldest)
        elif elapsed >= self._next:
            role = ("agent", "model", "resource")[self.joined % 3]
            self._waiting = role, system.add(role).pid
            self.joined += 1
            self._next = elapsed + CHANGE

    def finish(self) -> None:
        """See that all who were asked to go went as they should."""
        for child in self._asked:
            if not child.wait(60) or child.code:
                raise RuntimeError(f"{child.name} was asked to leave and ended with {child.code}: {child.tail(20)}")
            self.left += 1


def flat(plan: Plan) -> dict[str, Any]:
    """What a rollout costs in runs of different length."""
    runs: dict[int, list[Measured]] = {count: [] for count in COUNTS}
    for _i in range(min(plan.repeats, 3)):
        for count in COUNTS:
            measured = _once(plan, "scripted", count)
            runs[count].append(measured)
            plan.say(f"flat {count:,}: {measured.rate:,.0f} rollouts/s, {measured.cpu:.3f} ms")
    by_count = {str(count): _medians(runs[count]) for count in COUNTS}
    first, last = by_count[str(COUNTS[0])], by_count[str(COUNTS[-1])]
    return {
        "by_count": by_count,
        "cpu_ratio": last["cpu"] / first["cpu"],
        "rate_ratio": last["rate"] / first["rate"],
    }


def turns(plan: Plan) -> dict[str, Any]:
    """What a turn costs in conversations of different length, with a line through the points."""
    runs: dict[int, list[Measured]] = {number: [] for number in TURNS}
    with _folder() as folder, System(folder) as system:
        system.measure(1000, TURNS_IN_FLIGHT, environment="bench_turns", turns=5)
        for _i in range(min(plan.repeats, 3)):
            for number in TURNS:
                count = max(TURNS_IN_FLIGHT, TURNS_IN_RUN // number)
                measured = system.measure(count, TURNS_IN_FLIGHT, environment="bench_turns", turns=number, warm_up=0)
                runs[number].append(measured)
                plan.say(f"turns {number}: {measured.cpu:.3f} ms a rollout, {measured.cpu / number:.3f} ms a turn")
    found = {number: _medians(runs[number]) for number in TURNS}
    cpu = {number: found[number]["cpu"] for number in TURNS}
    slope, offset = _line(cpu)
    short, long = (cpu[10] - cpu[2]) / 8, (cpu[50] - cpu[10]) / 40
    return {
        "by_turns": {str(number): found[number] for number in TURNS},
        "line": {"ms_per_turn": slope, "ms_per_rollout": offset},
        "deviation": {str(number): cpu[number] / (offset + slope * number) - 1 for number in TURNS},
        "ms_per_further_turn": {"2 to 10": short, "10 to 50": long, "ratio": long / short},
    }


def _line(points: dict[int, float]) -> tuple[float, float]:
    """The line that minimises the relative errors."""
    weight = {x: 1 / y**2 for x, y in points.items()}
    total = sum(weight.values())
    mean_x = sum(weight[x] * x for x in points) / total
    mean_y = sum(weight[x] * y for x, y in points.items()) / total
    slope = sum(weight[x] * (x - mean_x) * (y - mean_y) for x, y in points.items())
    slope /= sum(weight[x] * (x - mean_x) ** 2 for x in points)
    return slope, mean_y - slope * mean_x


def scale(plan: Plan) -> dict[str, Any]:
    """Throughput with more agent and resource workers, when a tool that waits is what limits it."""
    found: dict[str, Any] = {}
    for number in WORKERS:
        ideal = number * SLOTS / WAIT
        workers = {"agent": number, "model": 1, "resource": number}
        options = {"resource": {"concurrency": SLOTS, "environments": "bench_slow"}}
        with _folder() as folder, System(folder, workers=workers, options=options) as system:
            measured = system.measure(round(ideal * SCALE_SECONDS), number * SLOTS * 2, environment="bench_slow", warm_up=200)
        found[str(number)] = {"runs": [measured], "ideal": ideal, "share": measured.rate / ideal}
        plan.say(f"scale {number}: {measured.rate:,.0f} rollouts/s of {ideal:,.0f}")
    first, last = (found[str(number)]["runs"][0].rate for number in (WORKERS[0], WORKERS[-1]))
    return {"by_workers": found, "speedup": last / first}


def hang(plan: Plan) -> dict[str, Any]:
    """What others feel of isolated tools that spin until they are killed: the same run, calm and beside them, in turn."""
    runs: dict[str, list[Measured]] = {"calm": [], "spinning": []}

    def once(kind: str, warm_up: int = 0) -> None:
        measured = system.measure(
            NEIGHBOURS_IN_RUN, NEIGHBOURS, environment="bench_turns", turns=NEIGHBOURS_TURNS, warm_up=warm_up
        )
        runs[kind].append(measured)
        median, p99 = measured.checked.lasted
        plan.say(f"hang, {kind}: a rollout lasts {median:.0f} ms, p99 {p99:.0f} ms")

    for _i in range(min(plan.repeats, 3)):
        with _folder() as folder, System(folder, latency=NEIGHBOURS_LATENCY) as system:
            once("calm", warm_up=200)
            system.add("executor")
            with system.beside(1000, SPINNERS, "bench_spin"):
                time.sleep(SPIN)
                once("spinning")
    found: dict[str, Any] = {kind: _medians(some) for kind, some in runs.items()}
    for kind, some in runs.items():
        found[kind]["lasted"] = [statistics.median(run.checked.lasted[i] for run in some) for i in (0, 1)]
    found["p99_ratio"] = found["spinning"]["lasted"][1] / found["calm"]["lasted"][1]
    return found


def _medians(runs: list[Any]) -> dict[str, Any]:
    """The medians of some runs, and the runs."""
    found: dict[str, Any] = {
        key: statistics.median(getattr(run, key) for run in runs)
        for key in ("rate", "all_in", "cpu", "cpu_mock")
        if hasattr(runs[0], key)
    }
    found["lowest_rate"] = min(run.rate for run in runs)
    found["highest_rate"] = max(run.rate for run in runs)
    found["others"] = statistics.median(run.used.others for run in runs)
    roles = runs[0].used.cpu
    found["cpu_by_process"] = {role: statistics.median(run.used.cpu[role] for run in runs) for role in roles}
    found["runs"] = runs
    return found


def queue_times(runs: list[Measured]) -> dict[str, tuple[float, float]]:
    """By kind of call, the medians of the runs' 50th and 99th percentiles of queue time, in milliseconds."""
    kinds = runs[0].checked.queued
    return {
        kind: (
            quantile([run.checked.queued[kind][0] for run in runs], 0.5),
            quantile([run.checked.queued[kind][1] for run in runs], 0.5),
        )
        for kind in kinds
    }


SCENARIOS: dict[str, Callable[[Plan], dict[str, Any]]] = {"w3": w3, "flat": flat, "turns": turns, "scale": scale, "hang": hang}
