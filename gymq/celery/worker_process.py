"""A worker's process: Celery's worker program, made of the app itself and not by Celery's command line.

Celery's command line puts the working directory before all installed packages and imports the app by its name; it also
reads variables of other apps (`APP`, `BROKER_URL`). `gymq worker` hands over the app, so what is imported does not depend on
where it was started.
"""

from __future__ import annotations

# Celery has no stubs.
# pyright: reportMissingTypeStubs=false
from typing import Any

from celery.utils.nodenames import default_nodename, host_format

from gymq.celery import app
from gymq.celery.queues import EXECUTOR
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings

#: Threads of Celery's pool in a worker that hosts an actor: they run the enqueue task and nothing else.
POOL_THREADS = 2


class WorkerProcess:
    """This process as a worker: its role is made and has loaded what it serves, and takes no mail before `run`.

    Args:
        role: `agent`, `model`, `resource` or `executor`.
        options: the role's options.
        name: what Celery and Flower call it, unique on this machine.
        processes: of an executor: how many calls run at once.

    Raises:
        GymqError: an option makes no sense, or what the worker is to serve cannot be loaded.
    """

    def __init__(self, role: str, options: RoleOptions, name: str, processes: int) -> None:
        executor = role == EXECUTOR
        self._worker: Any = app.Worker(
            hostname=host_format(default_nodename(f"{name}@%h")),
            # An executor's calls need processes that can be killed; a process with an actor must not fork.
            pool="prefork" if executor else "threads",
            concurrency=processes if executor else POOL_THREADS,
            # Of Celery's own lines; gymq's have the level of the settings.
            loglevel="INFO" if Settings.from_environment().log_level == "debug" else "WARNING",
            quiet=True,
            without_gossip=True,
            without_mingle=True,
            role=role,
            role_options=options,
        )

    def run(self) -> int:
        """Serve until drained or stopped; return the exit code."""
        self._worker.start()
        return int(self._worker.exitcode or 0)
