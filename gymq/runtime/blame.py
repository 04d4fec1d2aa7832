"""The blame for a process's end: whether the mail that it holds may have caused the error with which it ends.

What may have caused it counts a death, and in two deaths it is a suspect. An error that says nothing of the mail counts none:
others take up what was held as if it had never been taken.
"""

from __future__ import annotations

import errno

from gymq.errors import ServerUnreachable
from gymq.store.connection import AccessRefused, Outage, ServerFull, UnknownScript

#: Errors over Redis itself, whatever was asked of it.
_OVER_REDIS = (Outage, ServerFull, ServerUnreachable, AccessRefused, UnknownScript)

#: Numbers of errors of a machine or process that has run out of something: open files, memory, room on a disk, processes.
_EXHAUSTED = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN}
)  # fmt: skip


def exhausted(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised from, says that this machine or process has run out of something."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _EXHAUSTED):
            return True
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_on_mail(error: BaseException) -> bool:
    """Return whether what a process holds may be to blame for the error that ends it."""
    return not (isinstance(error, _OVER_REDIS) or exhausted(error))
