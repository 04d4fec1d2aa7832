"""What the faults did: reads the sinks' files, Redis's counters, the environment's journal and the list of faults."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec

from gymq.ops.fault_injection import InjectedFault
from tests.support import rollouts
from tests.support.farm import PLUGIN

from .driver import Driver

# Not for good: tests that come later must not find the plugin installed.
sys.path.insert(0, str(PLUGIN))
from gymq_test_chaos import SCRIPT, transcript

sys.path.remove(str(PLUGIN))


class Verdict(msgspec.Struct):
    """What came of a run.

    Args:
        rollouts: how many were wanted.
        faults: faults by role and kind.
        lost: rollouts that a sink does not have.
        doubled: rollouts that a sink has twice, or that ended twice in Redis.
        failed: rollouts that did not complete.
        twisted: rollouts whose transcript or reward is not what it must be.
        calls: calls of all rollouts.
        held: calls and steps that victims held.
        repeated: runs of a call beyond the first.
        reasons: why calls ran again: the fault and the role of the process that had them, or `lapsed` and its role if nobody
            had hit it.
        unexplained: calls that ran again more often than they were handed back, or, if isolated, begun by another executor
            after the death of the one that had begun it; at most a hundred are listed.
        recovered: seconds until what a victim held was answered, for each fault that was felt, sorted.
        waited: the longest that a call or step waited for the last death of somebody who held it, seconds.
        queued: the longest that a call waited from when it was sent until the start that was answered, for each death of
            somebody who held it, seconds: also where nobody knows who had it.
    """

    rollouts: int
    faults: dict[str, int]
    lost: int = 0
    doubled: int = 0
    failed: int = 0
    twisted: int = 0
    calls: int = 0
    held: int = 0
    repeated: int = 0
    reasons: dict[str, int] = {}
    unexplained: list[str] = []
    recovered: list[float] = []
    waited: float = 0.0
    queued: float = 0.0

    def good(self, within: float | None = None) -> None:
        """Assert that nothing was lost, doubled, failed or twisted, and that nobody waited longer."""
        assert (self.lost, self.doubled, self.failed, self.twisted) == (0, 0, 0, 0), self
        assert not self.unexplained, self
        if within is not None:
            assert max(self.waited, self.queued) <= within, self


def check(driver: Driver) -> Verdict:
    """Look at everything, after the run is done."""
    ids = {f"{driver.run}.{i}.0" for i in range(driver.rows)}
    verdict = Verdict(driver.rows, dict(Counter(f"{fault.kind} {fault.role}" for fault in driver.faults)))
    records = [json.loads(line) for line in driver.sinks["lines"].read_bytes().splitlines()]
    for found in ([record["rollout_id"] for record in records], _parts(driver.sinks["parts"])):
        _count(verdict, ids, found)
    verdict.doubled += max(0, rollouts.status(driver.settings, driver.run).ended - driver.rows)
    _read(verdict, records)
    if driver.trace is not None:
        _repeats(driver, verdict, records)
    _times(driver.faults, verdict)
    return verdict


def check_file(out: Path, rows: int, faults: dict[str, int]) -> Verdict:
    """Look at the file of a `gymq run`, after it has ended."""
    records = [json.loads(line) for line in out.read_bytes().splitlines()]
    verdict = Verdict(rows, faults)
    _count(verdict, {f"{records[0]['run']}.{i}.0" for i in range(rows)}, [record["rollout_id"] for record in records])
    _read(verdict, records)
    verdict.repeated = sum(call.get("attempt", 0) for record in records for call in record["calls"])
    return verdict


def _count(verdict: Verdict, ids: set[str], found: list[str]) -> None:
    verdict.lost += len(ids - set(found))
    verdict.doubled += len(found) - len(set(found))


def _read(verdict: Verdict, records: list[dict[str, Any]]) -> None:
    """See that each record is whole: its transcript, its reward."""
    steps = sum(name == "step" for names in SCRIPT for name in names)
    for record in records:
        verdict.failed += record["status"] != "completed"
        said = [
            (m["role"], m.get("tool_call_id") or " ".join(c["id"] for c in m.get("tool_calls") or []))
            for m in record["messages"]
        ]
        verdict.twisted += said != transcript() or record["reward"] != float(steps)
        verdict.calls += len(record["calls"])


def _parts(folder: Path) -> list[str]:
    import pyarrow.parquet as parquet

    return [one for path in sorted(folder.glob("part-*.parquet")) for one in parquet.read_table(path)["rollout_id"].to_pylist()]


def _repeats(driver: Driver, verdict: Verdict, records: list[dict[str, Any]]) -> None:
    """Find the reason of each run of a call beyond its first."""
    ran: dict[str, Counter[str]] = defaultdict(Counter)
    pids: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in driver.journal.read_text().splitlines():
        task, what, pid, at = line.split()
        ran[task][what] += 1
        pids[task, what].append(f"{pid} at {at}")
    verdict.held = sum(len(fault.held) for fault in driver.faults)
    reasons: Counter[str] = Counter()
    tools = [f"{name}{turn}{i}" for turn, names in enumerate(SCRIPT) for i, name in enumerate(names)]
    for record in records:
        mine = ran[record["task_id"]]
        names = {
            "open": ["open"],
            "tool": tools,
            "respond": sorted((name for name in mine if name.startswith("respond")), key=lambda name: int(name[7:])),
            "verify": ["verify", "verdict"],
            "close": ["close"],
        }
        places = {kind: iter(some) for kind, some in names.items()}
        for call in sorted(record["calls"], key=lambda call: tuple(map(int, call["call"].split(".")))):
            id_ = f"{record['rollout_id']}:{call['call'].replace('.', ':')}"
            what = next(places[call["kind"]]) if call["kind"] in places else ""
            # What leaves no line in the journal tells of each death itself.
            again = mine[what] - 1 if what else call.get("attempt", 0)
            isolated = what in ("verify", "verdict") or what.startswith("think")
            why = _why(driver, id_, isolated)
            verdict.repeated += again
            verdict.queued = max(verdict.queued, (call["started"] - call["queued"]) / max(len(why), 1))
            reasons.update(why[:again])
            if again > len(why) and len(verdict.unexplained) < 100:
                verdict.unexplained.append(
                    f"{id_} {what or call['kind']} ran {again + 1} times ({pids[record['task_id'], what]}): {why}"
                )
    verdict.reasons = dict(reasons)


def _why(driver: Driver, call: str, isolated: bool) -> list[str]:
    """The deaths for which a call may have run again: of those who gave it back, or had begun it before another did."""
    assert driver.trace is not None
    if isolated:  # a copy that a resource worker sends is not begun while the first one runs
        begun = driver.trace.begun[call]
        return [_fault(driver.faults, one.worker, after.at) for one, after in itertools.pairwise(begun)]
    return [_fault(driver.faults, one.worker, one.at) for one in driver.trace.back[call]]


def _fault(faults: list[InjectedFault], worker: str, before: float) -> str:
    hits = [fault for fault in faults if worker in fault.workers and fault.at < before]
    role = worker.partition("-")[0]
    return f"{hits[-1].kind} {role}" if hits else f"lapsed {role}"


def _times(faults: list[InjectedFault], verdict: Verdict) -> None:
    last: dict[str, float] = {}
    for fault in faults:
        for one in fault.held:
            last[one] = max(last.get(one, 0.0), fault.at)
        if fault.held and fault.recovered is not None:
            verdict.recovered.append(fault.recovered)
    verdict.recovered.sort()
    for fault in faults:
        for one, seconds in fault.held.items():
            if last[one] == fault.at:
                # What is never answered counts as if it had waited for ever.
                verdict.waited = max(verdict.waited, float("inf") if seconds is None else seconds)
