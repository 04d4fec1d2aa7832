"""Exponential back-off, the one formula of all retries. What is retried, how often and for how long, each level says itself:

* a request to a model server: `workers/model/openai/retry.py`; an endpoint that failed rests: `endpoint_pool.py` beside it;
* a rollout's calls that met an outage: `workers/agent/retry_budget.py`;
* a child process that died: `gymq/process/supervisor.py`; a quarantine: `gymq/runtime/quarantine.py`;
* a command to Redis: `gymq/store/connection.py`, at an even pace, spread at random.
"""

from __future__ import annotations

#: Doublings beyond which every bound is reached; a float bears more.
_MAX_DOUBLINGS = 60


def backoff(failures: int, first: float, longest: float) -> float:
    """Return the seconds to wait after some failures in a row; the caller spreads them at random where many wait.

    Args:
        failures: their number, from 1.
        first: seconds after the first failure; each further one doubles them.
        longest: seconds at most.
    """
    return min(longest, first * 2.0 ** min(max(failures, 1) - 1, _MAX_DOUBLINGS))
