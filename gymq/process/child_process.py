"""A child process that never outlives its parent, with its log and its own process group.

A short wrapper runs first in the child: it asks the kernel for a signal at the parent's death and then becomes the
program. The kernel means the *thread* that started the child, so a child is started by the main thread, or by one thread
that lives as long as the process. Only Linux has that signal; elsewhere a killed parent leaves its children running.

Processes that the child starts die with its group, as long as they stay in it and this process is there to kill it.
After a SIGKILL of this process only the child itself is sure to die.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path

from gymq.errors import GymqError

#: Seconds between two looks at a process that is waited for: short beside any grace, and 50 cheap calls a second.
POLL_INTERVAL = 0.02

#: Seconds to wait for a process after SIGKILL; it takes longer only when the kernel cannot end it (a dead disk).
KILL_LIMIT = 10.0

#: Bytes at a log's end in which its last lines are looked for; more than a long traceback.
TAIL_BYTES = 64 * 1024

#: What runs first in the child. Python ignores two signals, which the program would inherit. A parent that died before
#: the signal was asked for is recognised by its absence. 1 is PR_SET_PDEATHSIG of <sys/prctl.h>.
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
    """The thread of process `pid` that starts children for other threads than the main one, and outlives these."""
    del pid  # only the key: a forked process has not got its parent's threads
    return ThreadPoolExecutor(1, "gymq-starter")


def _popen(command: Sequence[str], env: Mapping[str, str], log: Path | None, inherit: Sequence[int]) -> subprocess.Popen[bytes]:
    with nullcontext() if log is None else log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            pass_fds=inherit,
        )


def describe(code: int | None) -> str:
    """How a process ended, in words, from its exit code."""
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
        env: variables to set, beside those of this process.
        name: what to call it in messages.
        log: the file that gets its output and its errors, appended; None: they go where this process's go.
        death_signal: the signal it gets when this process dies.
        inherit: file descriptors that it keeps open.

    Raises:
        GymqError: there is no such program.
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
    ) -> None:
        self.name = name
        self.log = log
        #: The exit code, negative for a signal; None while it runs, or if somebody else took the code.
        self.code: int | None = None
        environment = {**os.environ, **env}
        if shutil.which(argv[0], path=environment.get("PATH")) is None:
            raise GymqError(f"{name}: there is no program {argv[0]!r}; install it or put it on the PATH")
        self._log_start = 0
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log_start = log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid()), str(int(death_signal)), *argv]
        if threading.current_thread() is threading.main_thread():
            self._process = _popen(command, environment, log, inherit)
        else:
            self._process = _starter(os.getpid()).submit(_popen, command, environment, log, inherit).result()
        self.pid = self._process.pid
        self._ended = False

    @property
    def alive(self) -> bool:
        """Whether it runs; when it has ended, what is left of its group is killed."""
        if self._ended:
            return False
        try:
            # Looked at but not reaped: a zombie keeps its number, so the signal to the group can hit no stranger.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return True
        except ChildProcessError:  # somebody else reaped it, and the number may be a stranger's by now
            self._process.poll()
        else:
            self._signal_group()
            self.code = self._process.wait()
        self._ended = True
        return False

    def ask(self) -> None:
        """Send SIGTERM to the process, not to its group: it stops its own children in its own order."""
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
        """End it and its group at once."""
        if self.alive:
            self._signal_group()
            self.wait(KILL_LIMIT)

    def terminate(self, grace: float) -> None:
        """Ask it to stop, and kill it with its group if it does not.

        Args:
            grace: seconds that it may take.
        """
        self.ask()
        if not self.wait(grace):
            self.kill()

    def tail(self, lines: int) -> list[str]:
        """The last lines that it wrote, without those of earlier processes with the same log."""
        if self.log is None:
            return []
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - TAIL_BYTES))
                return log.read().decode(errors="replace").splitlines()[-lines:]
        except FileNotFoundError:  # somebody cleaned up
            return []

    def _signal_group(self) -> None:
        # macOS answers PermissionError where only zombies are left in the group.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
