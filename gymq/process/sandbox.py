"""The sandbox: runs a model's program without access to network, other processes, secrets and the machine's files.

    from gymq import run_program

    ran = run_program(["python", "main.py"], files={"main.py": code}, stdin="3 4", seconds=5)
    ran.ok, ran.stdout, ran.reason

The walls between a program and the machine depend on the machine; `ProgramResult.walls` tells which they were:

    namespaces  user, process, network, mount and IPC namespaces of its own; needs Linux 5.12, and root or a kernel that lets
                users make namespaces
    uid         a user of its own that owns nothing, for root in a container without namespaces: the network is open
    weak        limits and an empty environment only: the program runs as this user; only where `GYMQ_SANDBOX=weak` accepts it
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from gymq.errors import GymqError, UsageError
from gymq.process.program_output import CHUNK, ProgramOutput

log = logging.getLogger(__name__)

Walls = Literal["namespaces", "uid", "weak"]

#: The environment variable whose value `weak` accepts limits without walls.
ACCEPT = "GYMQ_SANDBOX"

#: Default seconds of wall clock, and of CPU for each process.
SECONDS = 10.0

#: Default bytes of private memory of each process: enough for numpy on data that fits a prompt.
MEMORY = 512 * 1024**2

#: Default bytes of the program's folder, and of each file. The folder lies in memory.
DISK = 64 * 1024**2

#: Default number of processes and threads: numpy starts one per core.
PROCESSES = 64

#: Seconds beyond the limit after which the warden itself is killed.
WARDEN_GRACE = 10.0

_INIT = str(Path(__file__).with_name("namespace_init.py"))

#: The first walls that could be made in this process; empty until then.
_proven: list[Walls] = []


class ProgramResult(msgspec.Struct, frozen=True):
    """The outcome of a program.

    Args:
        exit: the exit code; negative: the signal that ended it; 127: the program does not exist.
        stdout: its output, cut at 1 MiB with a note.
        stderr: its error output, likewise.
        reason: "" if it ended by itself, else `timeout`, or `killed`: its warden died, as when the machine's memory ended.
        walls: the walls around it: `namespaces`, `uid` or `weak`.
        seconds: the wall-clock time, with the making of the walls.
    """

    exit: int
    stdout: str
    stderr: str
    reason: Literal["", "timeout", "killed"]
    walls: Walls
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.exit == 0 and not self.reason


def run_program(
    argv: Sequence[str],
    *,
    stdin: str | bytes = b"",
    files: Mapping[str, str | bytes] | None = None,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    disk: int = DISK,
    processes: int = PROCESSES,
    readable: Sequence[str | Path] = (),
) -> ProgramResult:
    """Run an untrusted program and wait for its end; it blocks, so call it in a tool that is `def`, best an isolated one.

        ran = run_program(["python", "main.py"], files={"main.py": code}, stdin="3 4", seconds=5)
        return ran.stdout if ran.ok else f"failed: {ran.reason or ran.stderr}"

    The program runs in a folder of its own, `/tmp` within namespaces, which holds `files` and is deleted afterwards. It sees
    the system's programs and libraries and this Python with its packages, read-only. `python` is this Python.

    Args:
        argv: the program and its arguments.
        stdin: its input.
        files: files to put into its folder, by their relative paths.
        seconds: wall-clock seconds until it is killed, with all processes that it started.
        memory: bytes of private memory of each process.
        disk: bytes of its folder, and of each file.
        processes: the number of processes and threads it may have at once.
        readable: further folders and files that it may read, at the same paths.

    Raises:
        GymqError: this machine has no walls, and `GYMQ_SANDBOX=weak` does not accept that.
        UsageError: a path of `files` is absolute or leads out of the folder, or `argv` is empty.
    """
    if not argv:
        raise UsageError("run_program: argv is empty; name a program")
    bodies = {_inside(name): _bytes(data) for name, data in (files or {}).items()}
    config = {
        "argv": list(argv),
        "files": [[name, len(data)] for name, data in bodies.items()],
        "seconds": seconds,
        "memory": memory,
        "disk": disk,
        "processes": processes,
        "readable": [*_python(), *(os.path.abspath(path) for path in readable)],
        "path": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin",
        "tmp": tempfile.gettempdir(),
        "parent": os.getpid(),
    }
    problems: list[str] = []
    for walls in _proven or _candidates():
        outcome = _RunningProgram(config | {"walls": walls}, b"".join(bodies.values()), _bytes(stdin)).wait()
        if isinstance(outcome, ProgramResult):
            if not _proven:
                _proven.append(walls)
                if walls != "namespaces":
                    why = f" ({'; '.join(problems)})" if problems else ""
                    log.warning("sandbox: %s%s", _WARNINGS[walls], why)
            return outcome
        problems.append(f"{walls}: {outcome}")
    raise GymqError(
        f"no sandbox for programs on this machine ({'; '.join(problems)}): allow user namespaces, run the executor as root, "
        f"or accept a program that can do what this user can with {ACCEPT}=weak"
    )


_WARNINGS = {
    "uid": "programs run as a user of their own, without namespaces: they can reach the network",
    "weak": "programs run with limits only: they can read and do what this user can",
}


class _RunningProgram:
    """A running program, seen from outside the walls."""

    def __init__(self, config: dict[str, Any], files: bytes, stdin: bytes) -> None:
        self._walls: Walls = config["walls"]
        self._started = time.monotonic()
        self._limit = self._started + config["seconds"] + WARDEN_GRACE
        status, status_writer = os.pipe()
        config_file, stdin_file = _memory(json.dumps(config).encode() + b"\n" + files), _memory(stdin)
        try:
            # Without this process's environment, which a child must not read.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _INIT, str(config_file), str(status_writer)],
                stdin=stdin_file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"PATH": os.defpath},
                pass_fds=(config_file, status_writer),
                start_new_session=True,
            )
        except BaseException:
            os.close(status)
            raise
        finally:
            for descriptor in (status_writer, config_file, stdin_file):
                os.close(descriptor)
        assert self._process.stdout and self._process.stderr
        self._streams = [ProgramOutput(self._process.stdout), ProgramOutput(self._process.stderr)]
        self._status = os.fdopen(status, "rb", buffering=0)

    def wait(self) -> ProgramResult | str:
        """Wait for its end; return a text if the walls could not be made: the reason."""
        try:
            report = self._read()
        finally:
            self._end()
        if "failed" in report:
            return str(report["failed"])
        stdout, stderr = (stream.text() for stream in self._streams)
        code = report.get("exit", -signal.SIGKILL)
        reason: Literal["", "timeout", "killed"] = "" if "exit" in report else "killed"
        if report.get("timeout") or code == -signal.SIGXCPU:
            reason = "timeout"
        return ProgramResult(code, stdout, stderr, reason, self._walls, time.monotonic() - self._started)

    def _read(self) -> dict[str, Any]:
        """Read the program's output and the warden's report, and return the report; empty: the warden died."""
        report = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            for stream in self._streams:
                selector.register(stream, selectors.EVENT_READ)
            while (left := self._limit - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if isinstance(key.fileobj, ProgramOutput):
                        if not key.fileobj.take():
                            selector.unregister(key.fileobj)
                    elif data := self._status.read(CHUNK):
                        report += data
                    else:  # the warden has ended; no more output follows
                        for stream in self._streams:
                            stream.take_rest()
                        return dict(json.loads(report.splitlines()[0])) if report else {}
        return {}

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(WARDEN_GRACE)
            self._process.kill()
            self._process.wait()
        self._status.close()
        for stream in self._streams:
            stream.close()


def _candidates() -> list[Walls]:
    if sys.platform != "linux":
        raise GymqError(f"no sandbox for programs on {sys.platform}: run the executor on Linux")
    walls: list[Walls] = ["namespaces"]
    if os.geteuid() == 0:
        walls.append("uid")
    if os.environ.get(ACCEPT) == "weak":
        walls.append("weak")
    return walls


def _python() -> list[str]:
    """Return the folders of this Python and its packages."""
    return list(dict.fromkeys(os.path.realpath(path) for path in (sys.base_prefix, sys.prefix)))


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in name:
        raise UsageError(f"run_program: {name!r} is no path within the program's folder; use a relative one without ..")
    return str(path)


def _bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


def _memory(data: bytes) -> int:
    """Return the descriptor of a nameless, sealed file with these bytes, at its beginning."""
    descriptor = os.memfd_create("gymq", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
