"""A trainer's process is its own: consuming loads neither Celery nor what workers are made of."""

from __future__ import annotations

import os
import subprocess
import sys

from gymq.settings import Settings
from gymq.store.connection import Connection
from tests.support.rollouts import make_run

#: Consumes a run to its end; prints how many rollouts it had, and the modules that it must not need.
TRAINER = """
import sys
import gymq
results = gymq.consume("r", "sink")
count = 0
for rollout in results:
    assert rollout.reward == 1.0 and not rollout.branches
    results.ack(rollout)
    count += 1
results.close()
forbidden = ("celery", "kombu", "gymq.runtime", "gymq.process", "gymq.celery")
print(count, [name for name in sys.modules if name.startswith(forbidden)])
"""


async def test_a_trainer_loads_neither_celery_nor_the_runtime(connection: Connection, settings: Settings):
    run = await make_run(connection)
    await run.finish(3)
    done = subprocess.run(
        [sys.executable, "-c", TRAINER],
        env=os.environ | {"GYMQ_REDIS_URL": settings.redis_url},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "3 []\n"
