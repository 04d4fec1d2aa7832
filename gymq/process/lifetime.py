"""The ties between the lives of processes, by prctl(2); without effect outside Linux, but for a parent that is dead already."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: Options of <sys/prctl.h>: a signal at the parent's death; orphaned descendants become children of the calling process.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def die_with(parent: int) -> None:
    """Have the kernel kill this process at its parent's death, whatever code it then runs.

    Args:
        parent: the parent's pid; if it is dead already, this process exits.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
