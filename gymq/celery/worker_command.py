"""The command line of a worker, for those who start one as a child: that of `gymq worker`."""

from __future__ import annotations

import sys

from gymq.celery import broker
from gymq.celery.queues import EXECUTOR
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings

ROLES = ("agent", "model", "resource", EXECUTOR)


def command(
    settings: Settings, role: str, options: RoleOptions, name: str, *, processes: int = 2
) -> tuple[list[str], dict[str, str]]:
    """Return the command line that starts a worker, and the variables that its environment needs besides the caller's own.

    Args:
        settings: where Redis is, and what all processes share; not in the arguments, for a URL may hold a password.
        role: `agent`, `model`, `resource` or `executor`.
        options: the role's options; those that are None are left out.
        name: what Celery and Flower call it, unique on this machine.
        processes: of an executor: how many calls run at once.

    Raises:
        UsageError: the server of the settings cannot be Celery's broker.
    """
    # -P: the working directory is no place to import from.
    argv = [sys.executable, "-P", "-m", "gymq.cli", "worker", role, "--name", name]
    if role == EXECUTOR:
        argv += ["--processes", str(processes)]
    for key, value in options.items():
        if value is not None:
            argv += ["--option", f"{key}={value}"]
    broker.find(settings)  # a mistake in it would be met in every worker
    return argv, settings.environment()
