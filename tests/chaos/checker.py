"""What the faults did: reads the sinks' files, Redis's counters, the environment's journal and the list of faults."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec

from gymq.chaos import Fault
from tests.support import rollouts
from tests.support.farm import PLUGIN

from .driver import Driver

sys.path.insert(0, str(PLUGIN))
from gymq_test_chaos import SCRIPT, transcript


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
        unexplained: calls that ran again more often than victims held them, at most a hundred are listed.
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
    unexplained: list[str] = []
    recovered: list[float] = []
    waited: float = 0.0
    queued: float = 0.0

    def good(self, within: float | None = None) -> None:
        """Assert that nothing was lost, doubled, failed or twisted, and that nobody waited longer."""
        assert (self.lost, self.doubled, self.failed, self.twisted) == (0, 0, 0, 0), self
        if within is not None:
            # What a stopped worker takes under its old name as it wakes may be handed back between two looks at what it holds.
            # That this is what is left over is a guess: it was not traced.
            stops = sum(count for fault, count in self.faults.items() if fault.startswith("stop"))
            assert len(self.unexplained) <= stops, self
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
    """Compare how often each call ran with how often somebody who held it was hit."""
    ran: dict[str, Counter[str]] = defaultdict(Counter)
    for line in driver.journal.read_text().splitlines():
        task, what, *_ = line.split()
        ran[task][what] += 1
    hits = Counter(one for fault in driver.faults for one in fault.held)
    verdict.held = sum(hits.values())
    tools = [f"{name}{turn}{i}" for turn, names in enumerate(SCRIPT) for i, name in enumerate(names)]
    for record in records:
        mine = ran[record["task_id"]]
        names = {
            "open": ["open"],
            "tool": tools,
            "respond": sorted((name for name in mine if name.startswith("respond")), key=lambda name: int(name[7:])),
            "verify": ["verify"],
            "close": ["close"],
        }
        places = {kind: iter(some) for kind, some in names.items()}
        for call in sorted(record["calls"], key=lambda call: tuple(map(int, call["call"].split(".")))):
            id_ = f"{record['rollout_id']}:{call['call'].replace('.', ':')}"
            again = call.get("attempt", 0)
            if call["kind"] in places:
                again = max(again, mine[next(places[call["kind"]])] - 1)
            verdict.repeated += again
            verdict.queued = max(verdict.queued, (call["started"] - call["queued"]) / max(hits[id_], 1))
            if again > hits[id_] and len(verdict.unexplained) < 100:
                verdict.unexplained.append(f"{id_} {call['kind']} {call.get('name', '')} again {again}, held {hits[id_]}")


def _times(faults: list[Fault], verdict: Verdict) -> None:
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
