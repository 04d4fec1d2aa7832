"""Flower's command line: it shows workers and rollouts, and changes nothing."""

from __future__ import annotations

import sys

from gymq.settings import Settings

#: Tasks that Flower keeps in memory; older ones go first.
MAX_TASKS = 20_000

#: Seconds after which a worker that went away is no longer shown.
PURGE_OFFLINE = 60


#: The name with which people log in.
USER = "gymq"


def command(settings: Settings, port: int, password: str) -> tuple[list[str], dict[str, str]]:
    """Return the command line that starts Flower, and the variables that its environment needs besides the caller's own.

    Args:
        settings: where Redis is; stands in the environment, not in the arguments, for it may hold a password.
        port: where it listens, on this machine only.
        password: what it asks for: other users of the machine reach the port, too, and could read every task.
    """
    arguments = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "gymq",
        "flower",
        "--address=127.0.0.1",
        f"--port={port}",
        # It would switch on task events in every worker every 5 s; ours send those that are meant to be seen.
        "--enable_events=False",
        "--read_only=True",
        # A rollout's result tells its reward, its exception why it failed.
        "--tasks_columns=name,uuid,state,result,exception,received,runtime,worker",
        f"--max_tasks={MAX_TASKS}",
        f"--purge_offline_workers={PURGE_OFFLINE}",
    ]
    return arguments, {**settings.environment(), "FLOWER_BASIC_AUTH": f"{USER}:{password}"}
