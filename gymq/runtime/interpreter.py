"""The Python interpreter's own timing, set for a process that hosts an actor's loop."""

from __future__ import annotations

import gc
import sys

#: Seconds that Python lets one thread run while another waits for the interpreter. Its default, 5 ms, is what the actor's
#: loop would wait each time after Celery's main thread or a tool's thread got hold of it.
SWITCH_INTERVAL = 5e-4

#: New objects between two collections, and collections between two of older objects. With the usual 700 a busy loop
#: spends a quarter of its time on looking at thousands of conversations that are all alive.
GC_THRESHOLD = (20_000, 20, 50)


def tune() -> None:
    """Switch threads sooner, collect garbage less often, and spare what exists by now."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
