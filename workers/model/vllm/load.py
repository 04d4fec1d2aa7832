"""The load of a vLLM engine, from its own statistics, and the number of calls to give it."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

#: Calls that should wait in the engine, to begin as others end, so that no step is smaller than it could be.
SPARE_CALLS = 8

#: Calls that an engine gets at first, before its statistics say how many fit.
FIRST_CALLS = 64

#: Share of the KV cache in use above which no more calls are let in: running ones need room for their answers.
KV_CACHE_LIMIT = 0.9

#: Seconds over which tokens and the prefix cache's hits are counted.
WINDOW_SECONDS = 10.0


class EngineLoad:
    """The engine's load.

    The number of calls that fit depends on their tokens, which fill the cache. So `room` begins small and doubles while all
    calls run and the cache has room; when calls wait in the engine, it is the number of running ones, and a few.
    """

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.cache = 0.0
        #: Calls in the engine.
        self.sent = 0
        #: Answers with a tool call that the parser cannot read.
        self.malformed = 0
        #: Prompt tokens that were looked up in the prefix cache since the engine started, and those found there.
        self.looked = 0
        self.hits = 0
        self.room = FIRST_CALLS
        self._most = FIRST_CALLS
        # Time; tokens of an answer; prompt tokens that a step looked up in the prefix cache, and those found there.
        self._counts: deque[tuple[float, int, int, int]] = deque()

    def begin(self, most: int) -> None:
        """Set the most calls that the engine, which has started, runs at once."""
        self._most = most + SPARE_CALLS
        self.room = min(FIRST_CALLS, self._most)

    def record(self, scheduler: Any) -> None:
        """Take vLLM's `SchedulerStats` of one step."""
        self.running = scheduler.num_running_reqs
        self.waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
        self.cache = scheduler.kv_cache_usage
        if self.waiting > SPARE_CALLS:
            self.room = max(1, self.running + SPARE_CALLS)
        elif self.running + self.waiting >= self.room - SPARE_CALLS and not self.waiting and self.cache < KV_CACHE_LIMIT:
            self.room = min(2 * self.room, self._most)
        prefix = scheduler.prefix_cache_stats
        if prefix is not None and prefix.queries:
            self.looked += prefix.queries
            self.hits += prefix.hits
            self._count((time.monotonic(), 0, prefix.queries, prefix.hits))

    def answered(self, tokens: int) -> None:
        """Count the tokens of an answer."""
        self._count((time.monotonic(), tokens, 0, 0))

    def _count(self, counts: tuple[float, int, int, int]) -> None:
        self._counts.append(counts)
        self._forget(counts[0])

    def numbers(self) -> dict[str, float]:
        """Return the load by name: calls, shares from 0 to 1, tokens per second, and tokens since the start."""
        self._forget(time.monotonic())
        sampled, looked, hits = (sum(counts[i] for counts in self._counts) for i in (1, 2, 3))
        return {
            "running": float(self.running if self.sent else 0),
            "waiting": float(self.waiting if self.sent else 0),
            "room": float(self.room),
            "kv_cache": round(self.cache, 4),
            "prefix_hits": round(hits / looked, 4) if looked else 0.0,
            "tokens_per_second": round(sampled / WINDOW_SECONDS, 1),
            "prompt_tokens": float(self.looked),
            "cached_tokens": float(self.hits),
            "malformed_calls": float(self.malformed),
        }

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] < now - WINDOW_SECONDS:
            self._counts.popleft()

    def logger(self) -> Any:
        """Return the class of a logger for vLLM that feeds this load, and stands in for vLLM's Prometheus logger."""
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        load = self

        # vLLM makes none of its own if it is given a subclass of it, which must override each method.
        class Feeder(PrometheusStatLogger):  # type: ignore[misc, unused-ignore]
            def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
                del vllm_config, engine_indexes

            def record(
                self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
            ) -> None:
                if scheduler_stats is not None:
                    load.record(scheduler_stats)

            def record_admission_rejection(self, reason: str) -> None:
                pass

            def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
                pass

            def log_engine_initialized(self) -> None:
                pass

        return Feeder
