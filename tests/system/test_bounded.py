"""Memory stays bounded: a dead sink and a slow model stop admission and the producer, and then everything arrives."""

from __future__ import annotations

import os
import threading

import psutil
import pytest
from redis import Redis

from gymq.cache import BUDGET
from gymq.client.rollout_set import RolloutSet
from gymq.store import task_ledger
from gymq.store.admission import BACKLOG_BYTES
from gymq.store.runs import RunConfig
from tests.support.farm import records
from tests.support.rollouts import weather
from tests.support.waiting import wait_until

#: Rows; GYMQ_BOUNDED_ROWS=200000 is the size that docs/operations.md speaks of.
ROWS = int(os.environ.get("GYMQ_BOUNDED_ROWS", "10000"))

#: Rollouts that the sink may be behind.
BACKLOG = max(500, ROWS // 20)

#: Bytes of unfinished rows that the ledger may hold: a tenth of the rows.
LEDGER = ROWS * 25

#: Bytes of a record of this test, of a conversation in flight, and what Redis needs beside each row, record and run.
RECORD, IN_FLIGHT, ROW_EXTRA, FIXED = 2500, 8000, 150, 2**20


@pytest.mark.slow
def test_a_dead_sink_and_a_slow_model_hold_the_producer_and_then_all_arrive(farm, tmp_path, monkeypatch, no_leaks):
    # Given workers with a slow model, and a sink that was declared and is dead
    monkeypatch.setattr(task_ledger, "MAX_BYTES", LEDGER)
    workers = [
        farm.start("agent"),
        farm.start("model", model="scripted", latency=0.05),
        farm.start("resource", environments="weather"),
    ]
    farm.wait_for(3)
    redis = Redis.from_url(farm.settings.redis_url)
    before = redis.info("memory")["used_memory"]
    config = RunConfig("flood", "weather", "tool", "scripted", concurrency=100, backlog=BACKLOG)
    rows = weather(ROWS)
    producing = threading.Thread(target=farm.produce, args=(config, rows), daemon=True)
    producing.start()
    wait_until(lambda: farm.ask("EXISTS", "gymq:{0}:run:flood"), 30, "the run")
    # When nothing is taken away
    wait_until(lambda: farm.status("flood").live == 0 and farm.status("flood").ended >= BACKLOG, 120, "admission to stop")
    # Then the producer waits, and Redis holds what the formula says, and not more
    held = farm.status("flood")
    unfinished = held.rows - held.ended
    assert producing.is_alive()
    assert held.rows < ROWS
    assert BACKLOG <= held.ended <= BACKLOG + config.concurrency
    assert int(farm.ask("HGET", "gymq:{0}:run:flood", "bytes")) <= LEDGER
    used = redis.info("memory")["used_memory"] - before
    allowed = LEDGER + unfinished * ROW_EXTRA + min(BACKLOG * RECORD, BACKLOG_BYTES) + config.concurrency * IN_FLIGHT + FIXED
    print(f"\n{held.rows} rows enqueued, {held.ended} ended; Redis uses {used >> 10} KiB of {allowed >> 10}")
    assert used <= allowed
    # When the sink comes, all arrive, and no process grows with their number
    middle: dict[int, int] = {}
    out = tmp_path / "out.jsonl"
    sink = farm.sink("flood", out)

    def done() -> bool:
        status = farm.status("flood")
        if status.ended >= ROWS // 2 and not middle:
            middle.update({process.pid: psutil.Process(process.pid).memory_info().rss for process in (*workers, sink)})
        return status.state == "done"

    wait_until(done, 120 + ROWS / 200, "the run to be done")
    producing.join(10)
    seen = RolloutSet("flood")
    assert all(seen.add(record["rollout_id"]) for record in records(out))
    assert len(seen) == ROWS
    grown = {process.pid: psutil.Process(process.pid).memory_info().rss - middle[process.pid] for process in workers}
    print(f"resident bytes since the middle: {grown}")
    # What a worker keeps of conversations is bounded, and may grow up to there.
    assert all(bytes_ < BUDGET for bytes_ in grown.values())
