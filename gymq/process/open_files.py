"""The limit of open files of this process: as many calls at once as it lets be open, and no more."""

from __future__ import annotations

import logging
import resource

#: Open files of a process besides those of its calls: connections to Redis for several shards, Celery's, libraries, logs.
BESIDES = 128

log = logging.getLogger(__name__)


def room_for(calls: int) -> int:
    """Raise this process's limit of open files as far as is needed and allowed, and return how many calls it lets run at once.

    A call may hold one open file: the connection to the server that it asks. A process without one left would not only fail
    calls: it could not connect to Redis again, nor hand back what it holds.

    Args:
        calls: how many are wanted at once.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = calls + BESIDES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < needed:
            room = max(1, most - BESIDES)
            log.warning(
                "takes %d calls at once, not %d: this process may have %d files open; raise its limit (ulimit -Hn %d) "
                "or start more workers", room, calls, most, needed,
            )  # fmt: skip
            return room
    return calls
