"""The child process that serves a worker's suspects: mail that was held in more than one death, one message at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time

import msgspec

from gymq.observe.events import QuarantineEnded, QuarantineStarted, emit
from gymq.process.child_process import ChildProcess, describe
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings

#: The child's environment variable with the role's options, a JSON object.
OPTIONS = "GYMQ_QUARANTINE_OPTIONS"

#: The child's environment variable with the number of the shard whose suspects it serves.
SHARD = "GYMQ_QUARANTINE_SHARD"

#: Exit code of a child that could not begin: starting it again soon is of no use.
UNFIT = 78

#: Seconds between a quarantine's death and the next start: as long as it lived, but within these bounds, so that one
#: that cannot live takes no more than half a core.
RESTART_PAUSE = (1.0, 60.0)

#: Seconds that a quarantine may take to hand back what it holds; then it is killed, which may be a strike.
STOP_GRACE = 5.0

log = logging.getLogger(__name__)


class Quarantine:
    """A worker's quarantine, which may be started again; it ends by itself when no suspects come.

    Args:
        role: the worker's role.
        settings: the worker's settings.
        options: the role's options.
    """

    def __init__(self, role: str, settings: Settings, options: RoleOptions) -> None:
        self._role = role
        self._settings = settings
        self._options = options
        self._child: ChildProcess | None = None
        #: When it was started, and from when on it may be started again, seconds of the monotonic clock.
        self.started = 0.0
        self.due = 0.0

    @property
    def running(self) -> bool:
        """Whether the child ran at the last look."""
        return self._child is not None

    def look(self) -> None:
        """Look whether the child has ended."""
        if self._child is None or self._child.alive:
            return
        now = time.monotonic()
        code, lived = self._child.code, now - self.started
        self._child = None
        emit(QuarantineEnded(self._role, describe(code), lived))
        if code != 0:
            self.due = now + (RESTART_PAUSE[1] if code == UNFIT else min(max(lived, RESTART_PAUSE[0]), RESTART_PAUSE[1]))

    async def start(self) -> None:
        """Start the child; if there is no room for it, put it off."""
        self.started = time.monotonic()
        try:
            self._child = await asyncio.to_thread(self._spawn)
            emit(QuarantineStarted(self._role))
        except OSError as error:  # no memory, no processes: that may pass
            self.due = self.started + RESTART_PAUSE[1]
            log.error("the quarantine of this %s worker cannot be started: %s", self._role, error)

    def _spawn(self) -> ChildProcess:
        # Options may hold secrets, and everybody may read arguments. The worker's death is no reason for a strike: the
        # child is asked to hand back, not killed.
        options = msgspec.json.encode(self._options).decode()
        environment = self._settings.environment() | {OPTIONS: options, SHARD: str(self._settings.shard)}
        argv = [sys.executable, "-P", "-m", "gymq.runtime.quarantine_main", self._role]
        name, own = f"{self._role} quarantine", os.environ.keys()  # it does the worker's work, and has the worker's secrets
        return ChildProcess(argv, environment, name, None, death_signal=signal.SIGTERM, secrets=own)

    async def end(self) -> None:
        """End the child, which hands back what it holds."""
        if self._child is not None:
            await asyncio.to_thread(self._child.terminate, STOP_GRACE)
            self._child = None
