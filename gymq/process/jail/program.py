"""The process that becomes the program: it gives up all rights, reports that the walls are up, and only then reads what to run.

What a program consists of (arguments, names and contents of files) is its own affair: if that is impossible, the program ends
with 127 and says why, as a shell does.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
from contextlib import suppress
from typing import IO, Any, NoReturn

from . import kernel

#: The niceness of programs, which are many and may spin beside a few workers that wait for mail.
NICE = 5

#: Open files of a program.
FILES = 256

#: Bytes of address space beyond the limit of memory, for mapped files and for what runtimes reserve and never use.
RESERVED = 4 * 1024**3

#: Bytes of a file that are copied at once.
_CHUNK = 256 * 1024

#: The exit code of a program that cannot be started.
_IMPOSSIBLE = 127


class Program:
    """The program.

    Args:
        config: the run's configuration, from `sandbox`.
        data: the program's own data: a line of JSON, then its files' contents.
        status: the descriptor for reports.
        uid: its user; None: this process's.
        folder: its folder.
    """

    def __init__(self, config: dict[str, Any], data: IO[bytes], status: int, uid: int | None, folder: str) -> None:
        self.config = config
        self.data = data
        self.status = status
        self.uid = uid
        self.folder = folder

    def run(self) -> NoReturn:
        """Become the program.

        Raises:
            OSError: the walls cannot be made; nothing of the program was read.
        """
        self._confine()
        report(self.status, up=True)
        os.close(self.status)
        try:
            self._start()
        except BaseException as error:
            self._give_up("cannot start", error)

    def _confine(self) -> None:
        config = self.config
        if config["walls"] == "namespaces":
            os.setpgid(0, 0)
        else:
            os.setsid()
            lower_session(open_session())
        os.umask(0o022)
        os.chdir(self.folder)
        os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        kernel.leave_keyrings()
        if self.uid is not None:
            become(self.uid)
        cpu = math.ceil(config["seconds"])
        limits = {
            resource.RLIMIT_CPU: (cpu, cpu + 1),
            resource.RLIMIT_FSIZE: (config["disk"],) * 2,
            resource.RLIMIT_NOFILE: (FILES,) * 2,
            resource.RLIMIT_CORE: (0, 0),
            resource.RLIMIT_MSGQUEUE: (0, 0),
        }
        # The limit counts all processes of a user, and the warden's user may have many others.
        if config["walls"] != "weak":
            limits[resource.RLIMIT_NPROC] = (config["processes"],) * 2
        _limit(limits)
        kernel.prctl(kernel.NO_NEW_PRIVS, 1)
        if config["filter"]:
            kernel.filter_calls(bytes.fromhex(config["filter"]))

    def _start(self) -> NoReturn:
        program = json.loads(self.data.readline())
        for name, size in program["files"]:
            try:
                self._write(name, size)
            except (OSError, ValueError) as error:
                self._give_up(f"cannot write {name!r}", error)
        memory = self.config["memory"]
        # Last: this interpreter has no part in it.
        _limit({resource.RLIMIT_DATA: (memory,) * 2, resource.RLIMIT_AS: (memory + RESERVED,) * 2})
        # What Python and the caller ignore would stay ignored.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        argv = program["argv"]
        environment = {"PATH": self.config["path"], "HOME": self.folder, "TMPDIR": self.folder, "LANG": "C.UTF-8"}
        try:
            os.execvpe(argv[0], argv, environment)
        except (OSError, ValueError) as error:
            self._give_up(f"cannot run {argv[0]!r}", error)

    def _write(self, name: str, size: int) -> None:
        parts = name.split("/")
        if os.path.isabs(name) or ".." in parts or parts[-1] in ("", "."):
            raise ValueError("no path within the program's folder")
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "xb", buffering=0) as file:
            while size:
                chunk = self.data.read(min(size, _CHUNK))
                size -= len(chunk)
                while chunk:
                    chunk = chunk[file.write(chunk) :]
        os.chmod(name, 0o755)

    def _give_up(self, what: str, error: BaseException) -> NoReturn:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        os.write(2, f"{what}: {why}\n".encode(errors="backslashreplace"))
        os._exit(_IMPOSSIBLE)


def report(status: int, **said: object) -> None:
    """Report to `sandbox`, one JSON object a line: `up`, then `exit`; or `failed`, if the walls cannot be made.

    Args:
        status: the descriptor.
        said: the object.
    """
    os.write(status, json.dumps(said).encode() + b"\n")


def become(uid: int) -> None:
    """Become a user, for good.

    Args:
        uid: the user, and its only group.
    """
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def open_session() -> int | None:
    """Open the priority of this process's session, where the kernel schedules each as a group with a niceness of its own."""
    try:
        return os.open("/proc/self/autogroup", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None


def lower_session(session: int | None) -> None:
    """Lower the priority of a session.

    Args:
        session: what `open_session` returned.
    """
    if session is not None:
        with suppress(OSError):  # the kernel takes few such words a second
            os.write(session, str(NICE).encode())
        os.close(session)


def _limit(limits: dict[int, tuple[int, int]]) -> None:
    for kind, wanted in limits.items():
        most = resource.getrlimit(kind)[1]
        soft, hard = wanted if most == resource.RLIM_INFINITY else (min(limit, most) for limit in wanted)
        resource.setrlimit(kind, (soft, hard))
