"""What an engine says that it is at, from vLLM's statistics; nothing here needs vLLM."""

from __future__ import annotations

from types import SimpleNamespace

from gymq_workers.model.vllm import load
from gymq_workers.model.vllm.load import EngineLoad


def step(engine: EngineLoad, looked: int, found: int) -> None:
    scheduler = SimpleNamespace(
        num_running_reqs=1,
        num_waiting_reqs=0,
        num_skipped_waiting_reqs=0,
        kv_cache_usage=0.0,
        prefix_cache_stats=SimpleNamespace(queries=looked, hits=found),
    )
    engine.record(scheduler)


def test_shares_are_of_the_last_seconds_and_tokens_of_all_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr(load.time, "monotonic", lambda: now)
    engine = EngineLoad()
    step(engine, 300, 0)
    engine.answered(7)
    now += load.WINDOW_SECONDS + 1
    step(engine, 100, 80)
    engine.answered(20)
    numbers = engine.numbers()
    assert numbers["prefix_hits"] == 0.8
    assert numbers["tokens_per_second"] == 2.0
    assert (numbers["prompt_tokens"], numbers["cached_tokens"]) == (400.0, 80.0)
