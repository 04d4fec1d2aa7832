"""A worker whose actor runs under cProfile: `python -P -m bench.profiled FILE <arguments of gymq>`.

Times are of the wall clock: `poll` is idleness, `send` is also what others get meanwhile. Read the shares, not the times:
"""

from __future__ import annotations

import cProfile
import sys

from gymq.celery.actor_step import ActorThread
from gymq.cli import main


def run() -> None:
    """Start the worker with the profiler around the actor's thread."""
    path = sys.argv[1]
    sys.argv = ["gymq", *sys.argv[2:]]
    live = ActorThread._live

    def profiled(self: ActorThread) -> None:
        profiler = cProfile.Profile()
        try:
            profiler.runcall(live, self)
        finally:
            profiler.dump_stats(path)

    ActorThread._live = profiled  # type: ignore[method-assign]
    main()


if __name__ == "__main__":
    run()
