"""The command line of each role: `celery -A gymq worker ...`."""

from __future__ import annotations

import sys

from gymq.celery import broker
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings

#: Threads of Celery's pool in a worker that hosts an actor: they run the enqueue task and nothing else.
POOL_THREADS = 2

ROLES = ("agent", "model", "resource", "executor")


def command(
    settings: Settings, role: str, options: RoleOptions, name: str, *, processes: int = 2, log_level: str = "WARNING"
) -> tuple[list[str], dict[str, str]]:
    """Return the command line that starts a worker, and the variables that its environment needs besides the caller's own.

    Args:
        settings: where Redis is, and the times that all processes share.
        role: `agent`, `model`, `resource` or `executor`.
        options: the role's options; those that are None are left out.
        name: what Celery and Flower call it, unique on this machine.
        processes: of an executor: how many calls run at once.
        log_level: Celery's.

    Raises:
        UsageError: the server of the settings cannot be Celery's broker.
    """
    argv = [sys.executable, "-m", "celery", "--quiet", "-A", "gymq", "worker", "--role", role, "-n", f"{name}@%h"]
    pool = ["-P", "prefork", "-c", str(processes), "-E"] if role == "executor" else ["-P", "threads", "-c", str(POOL_THREADS)]
    argv += [*pool, "--without-gossip", "--without-mingle", "-l", log_level]
    for key, value in options.items():
        if value is not None:
            argv += ["--option", f"{key}={value}"]
    broker.find(settings)  # a mistake in it would be a page of Celery's
    return argv, settings.environment()
