"""Celery's queues and tasks, and the queues that each role reads.

`gymq.rollouts` holds tasks that enqueue rows, agent workers read it; `gymq.isolated` holds isolated calls, executors read
it; workers of the other roles read no queue of Celery's, their mail comes over Redis Streams.
"""

from __future__ import annotations

#: The queue of tasks that enqueue rows.
ROLLOUTS_QUEUE = "gymq.rollouts"

#: The queue of isolated calls.
ISOLATED_QUEUE = "gymq.isolated"

#: The task by which any Celery client enqueues rollouts.
ENQUEUE = "gymq.enqueue"

#: The task that runs one call in an executor.
ISOLATED = "gymq.isolated"

#: The role that hosts no actor but a pool of processes.
EXECUTOR = "executor"

#: The queues of Celery's that each role reads.
QUEUES: dict[str, list[str]] = {"agent": [ROLLOUTS_QUEUE], "model": [], "resource": [], EXECUTOR: [ISOLATED_QUEUE]}
