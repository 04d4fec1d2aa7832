"""A child process that never outlives its parent, with its log and its own process group.

A short wrapper runs first in the child: it requests the kernel's signal at the parent's death and then becomes the program.
The signal follows the *thread* that started the child, so a child is started by the main thread, or by one thread that
lives as long as the process. Only Linux has that signal; elsewhere a killed parent leaves its children running.

The child's own children die with its group, as long as they stay in it and this process is there to kill it. After a
SIGKILL of this process only the child itself is sure to die.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path

from gymq.errors import GymqError
from gymq.process.secret_variables import without_secrets

#: Seconds between two checks of an awaited process: short beside any grace, and 50 cheap calls a second.
POLL_INTERVAL = 0.02

#: Seconds to wait for a process after SIGKILL; only a process in the kernel (a dead disk) takes longer.
KILL_LIMIT = 10.0

#: Bytes at a log's end that are searched for its last lines: more than a long traceback.
TAIL_BYTES = 64 * 1024

#: The first code in the child. Python ignores two signals, which the program would inherit. A parent that died before the
#: request for the signal is recognised by its absence. 1 is PR_SET_PDEATHSIG of <sys/prctl.h>.
WRAPPER = """
import ctypes, os, signal, sys
parent, death, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(1, death, 0, 0, 0):
    sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
if os.getppid() != parent:
    sys.exit("the parent died first")
os.execvp(argv[0], argv)
"""


@cache
def _starter(pid: int) -> ThreadPoolExecutor:
    """Return the thread of process `pid` that starts children for threads other than the main one, and outlives these."""
    del pid  # the cache's key: a forked process lacks its parent's threads
    return ThreadPoolExecutor(1, "gymq-starter")


def _popen(
    command: Sequence[str], env: Mapping[str, str], log: Path | None, inherit: Sequence[int], umask: int
) -> subprocess.Popen[bytes]:
    with nullcontext() if log is None else log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            pass_fds=inherit,
            umask=umask,
        )


def describe(code: int | None) -> str:
    """Return a process's end in words, from its exit code."""
    if code is None:
        return "no exit code"
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


class ChildProcess:
    """A process in a session and process group of its own, running from the moment it is constructed.

    Args:
        argv: the program and its arguments.
        env: variables to set, beside those of this process that hold no secret.
        name: its name in messages.
        log: the file to which its output and errors are appended; None: they go where this process's go.
        death_signal: the signal it receives at this process's death.
        inherit: file descriptors that it keeps open.
        umask: the permissions that its new files lack; -1: as those of this process.
        secrets: the variables of this process that it gets although they hold secrets.

    Raises:
        GymqError: the program does not exist.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        name: str,
        log: Path | None,
        *,
        death_signal: int = signal.SIGKILL,
        inherit: Sequence[int] = (),
        umask: int = -1,
        secrets: Collection[str] = (),
    ) -> None:
        self.name = name
        self.log = log
        #: The exit code, negative for a signal; None while it runs, or if other code of this process reaped it.
        self.code: int | None = None
        environment = {**without_secrets(os.environ, secrets), **env}
        if shutil.which(argv[0], path=environment.get("PATH")) is None:
            raise GymqError(f"{name}: there is no program {argv[0]!r}; install it or put it on the PATH")
        self._log_start = 0
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log_start = log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid()), str(int(death_signal)), *argv]
        if threading.current_thread() is threading.main_thread():
            self._process = _popen(command, environment, log, inherit, umask)
        else:
            self._process = _starter(os.getpid()).submit(_popen, command, environment, log, inherit, umask).result()
        self.pid = self._process.pid
        self._ended = False

    @property
    def alive(self) -> bool:
        """True while the process runs; looking at one that has ended kills the rest of its group."""
        if self._ended:
            return False
        try:
            # Without reaping: a zombie keeps its number, so the signal to the group can hit no stranger.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return True
        except ChildProcessError:  # reaped elsewhere; the number may be a stranger's by now
            self._process.poll()
        else:
            self._signal_group()
            self.code = self._process.wait()
        self._ended = True
        return False

    def request_stop(self) -> None:
        """Send SIGTERM to the process alone, which stops its own children in its own order."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, limit: float) -> bool:
        """Wait for its end.

        Args:
            limit: seconds to wait at most.

        Returns:
            Whether it has ended.
        """
        until = time.monotonic() + limit
        while self.alive:
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_INTERVAL)
        return True

    def kill(self) -> None:
        """Kill it and its group at once."""
        if self.alive:
            self._signal_group()
            self.wait(KILL_LIMIT)

    def terminate(self, grace: float) -> None:
        """Request its stop, and kill it with its group after a time.

        Args:
            grace: seconds until it is killed.
        """
        self.request_stop()
        if not self.wait(grace):
            self.kill()

    def tail(self, lines: int) -> list[str]:
        """Return its last lines, without those of earlier processes with the same log."""
        if self.log is None:
            return []
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - TAIL_BYTES))
                return log.read().decode(errors="replace").splitlines()[-lines:]
        except FileNotFoundError:  # the log was deleted
            return []

    def _signal_group(self) -> None:
        # macOS answers PermissionError where only zombies are left in the group.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
