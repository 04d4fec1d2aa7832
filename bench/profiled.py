"""A worker whose actor runs under cProfile: `python -m bench.profiled FILE <arguments of celery>`.

Times are of the wall clock: `poll` is idleness, `send` is also what others get meanwhile. Read the shares, not the times:
"""

from __future__ import annotations

import cProfile
import sys

from celery.__main__ import main

from gymq.celery.actor_step import ActorThread


def run() -> None:
    """Start Celery with the profiler around the actor's thread."""
    path = sys.argv[1]
    sys.argv = ["celery", *sys.argv[2:]]
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
