"""The trial of what an executor is to serve: environments are loaded once in a process of its own, before any call is taken.

The executor itself loads none: what an import leaves behind (threads, open connections, the state of a random generator) must
not be inherited by every child.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

from gymq import plugins
from gymq.errors import GymqError, UsageError
from gymq.process.child_process import describe


def try_loading(names: str | None) -> frozenset[str]:
    """Load environments in a fork of this process, and wait for its end.

    Args:
        names: as `plugins.load_environments` takes them.

    Returns:
        The variables with secrets that they need.

    Raises:
        UsageError: one that is named cannot be loaded.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _load(names, writer)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise UsageError(said or f"loading environments ({names or 'all'}) ended the process: {describe(code)}")
    return frozenset(said.split())


def _load(names: str | None, writer: int) -> NoReturn:
    """Load, write down why that failed, and end the process without the clean-up that is its parent's."""
    code = 1
    try:
        plugins.load_environments(names)
        os.write(writer, " ".join(plugins.declared_secrets()).encode())
        code = 0
    except GymqError as error:
        os.write(writer, str(error).encode())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
