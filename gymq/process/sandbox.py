"""Running programs that a model wrote, where they can reach nothing: no network, no other process, no secret, no file of ours.

    from gymq import run_program

    ran = run_program(["python", "main.py"], files={"main.py": code}, stdin="3 4", seconds=5)
    ran.ok, ran.stdout, ran.reason

What stands between a program and the machine depends on the machine; `ProgramResult.walls` says which it was:

    namespaces  user, process, network, mount and IPC namespaces of its own; needs Linux 5.12, and root or a kernel that lets
                users make namespaces
    uid         a user of its own that owns nothing, when we are root but in a container without namespaces: the network is open
    weak        only limits, and an empty environment: the program is us; only where `GYMQ_SANDBOX=weak` accepts it
"""

from __future__ import annotations

import fcntl
import json
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

Walls = Literal["namespaces", "uid", "weak"]

#: The variable whose value `weak` accepts walls that hold nothing.
ACCEPT = "GYMQ_SANDBOX"

#: Seconds of wall clock, and of CPU for each process, unless told otherwise.
SECONDS = 10.0

#: Bytes of private memory of each process unless told otherwise: enough for numpy on data that fits a prompt.
MEMORY = 512 * 1024**2

#: Bytes of its folder, and of each file, unless told otherwise. The folder lies in memory.
DISK = 64 * 1024**2

#: Processes and threads unless told otherwise: numpy starts one per core.
PROCESSES = 64

#: Bytes kept of what it prints, of stdout and stderr each: far more than a model reads.
OUTPUT = 1024**2

#: Seconds beyond the limit after which the warden itself is given up.
WARDEN_GRACE = 10.0

_INIT = str(Path(__file__).with_name("namespace_init.py"))

_CHUNK = 64 * 1024

#: The first walls that worked in this process.
_found: list[Walls] = []


class ProgramResult(msgspec.Struct, frozen=True):
    """What became of a program.

    Args:
        exit: its exit code; negative: the signal that ended it; 127: there is no such program.
        stdout: what it printed, cut at `OUTPUT` bytes with a note.
        stderr: likewise.
        reason: "" when it ended by itself, else `timeout`, or `killed`: its keepers died, as when the machine's memory ended.
        walls: what kept it in, see above.
        seconds: how long it took, with the making of the walls.
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
    """Run an untrusted program and wait for its end; blocks, so call it in a tool that is `def`, best an isolated one.

    It runs in a folder of its own, `/tmp` within namespaces, which holds `files` and is gone afterwards. It sees the system's
    programs and libraries and this Python with its packages, read-only. `python` is this Python.

    Args:
        argv: the program and its arguments.
        stdin: what it reads.
        files: files to put into its folder, by their relative paths.
        seconds: wall clock; then it is killed, with all that it started.
        memory: bytes of private memory of each process.
        disk: bytes of its folder, and of each file.
        processes: how many processes and threads it may have at once.
        readable: further folders and files that it may read, at the same paths.

    Raises:
        GymqError: this machine has no walls and `GYMQ_SANDBOX=weak` does not accept that.
        UsageError: a path of `files` is absolute or leads out of the folder, or there is no program named.
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
    for walls in _found or _candidates():
        ran = _Running(config | {"walls": walls}, b"".join(bodies.values()), _bytes(stdin)).wait()
        if isinstance(ran, ProgramResult):
            if not _found:
                _found.append(walls)
                if walls != "namespaces":
                    why = f" ({'; '.join(problems)})" if problems else ""
                    print(f"gymq: sandbox: {_SAY[walls]}{why}", file=sys.stderr)
            return ran
        problems.append(f"{walls}: {ran}")
    raise GymqError(
        f"no sandbox for programs on this machine ({'; '.join(problems)}): allow user namespaces, run the executor as root, "
        f"or accept a program that can do what this user can with {ACCEPT}=weak"
    )


_SAY = {
    "uid": "programs run as a user of their own, without namespaces: they can reach the network",
    "weak": "programs run with limits only: they can read and do what this user can",
}


class _Running:
    """A program that runs, seen from outside."""

    def __init__(self, config: dict[str, Any], files: bytes, stdin: bytes) -> None:
        self._walls: Walls = config["walls"]
        self._started = time.monotonic()
        self._limit = self._started + config["seconds"] + WARDEN_GRACE
        status, told = os.pipe()
        given, typed = _memory(json.dumps(config).encode() + b"\n" + files), _memory(stdin)
        try:
            # Its environment is its own: what stands in ours must not be a child's to read.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _INIT, str(given), str(told)],
                stdin=typed,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"PATH": os.defpath},
                pass_fds=(given, told),
                start_new_session=True,
            )
        except BaseException:
            os.close(status)
            raise
        finally:
            for descriptor in (told, given, typed):
                os.close(descriptor)
        assert self._process.stdout and self._process.stderr
        self._streams = [_Output(self._process.stdout), _Output(self._process.stderr)]
        self._status = os.fdopen(status, "rb", buffering=0)

    def wait(self) -> ProgramResult | str:
        """Wait for its end; text: why these walls could not be made."""
        try:
            told = self._read()
        finally:
            self._end()
        if "failed" in told:
            return str(told["failed"])
        stdout, stderr = (stream.text() for stream in self._streams)
        code = told.get("exit", -signal.SIGKILL)
        reason: Literal["", "timeout", "killed"] = "" if "exit" in told else "killed"
        if told.get("timeout") or code == -signal.SIGXCPU:
            reason = "timeout"
        return ProgramResult(code, stdout, stderr, reason, self._walls, time.monotonic() - self._started)

    def _read(self) -> dict[str, Any]:
        said = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            for stream in self._streams:
                selector.register(stream, selectors.EVENT_READ)
            while (left := self._limit - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if isinstance(key.fileobj, _Output):
                        if not key.fileobj.take():
                            selector.unregister(key.fileobj)
                    elif data := self._status.read(_CHUNK):
                        said += data
                    else:  # all keepers have ended; what the pipes still hold is all there is
                        for stream in self._streams:
                            stream.rest()
                        return dict(json.loads(said.splitlines()[0])) if said else {}
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


class _Output:
    """What a program prints: kept up to a bound, and read on, so that it does not wait for ever on a full pipe."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._kept = bytearray()
        self._cut = 0
        self._nowhere: int | None = None
        os.set_blocking(pipe.fileno(), False)

    def fileno(self) -> int:
        return int(self._pipe.fileno())

    def take(self) -> int:
        """Read some; 0: it was closed."""
        room = OUTPUT - len(self._kept)
        if room > 0:
            data = os.read(self.fileno(), min(_CHUNK, room))
            self._kept += data
            return len(data)
        if self._nowhere is None:
            self._nowhere = os.open(os.devnull, os.O_WRONLY)
        # Moves pages without looking at them: gigabytes cost next to nothing.
        cut = os.splice(self.fileno(), self._nowhere, OUTPUT)
        self._cut += cut
        return cut

    def rest(self) -> None:
        """Read what the pipe still holds; a process that got away may hold it open."""
        until = time.monotonic() + 1
        with suppress(BlockingIOError):
            while self.take() and time.monotonic() < until:
                pass

    def text(self) -> str:
        note = f"\n[{self._cut} bytes more were cut]" if self._cut else ""
        return self._kept.decode(errors="replace") + note

    def close(self) -> None:
        self._pipe.close()
        if self._nowhere is not None:
            os.close(self._nowhere)


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
    """The folders of this Python and its packages."""
    return list(dict.fromkeys(os.path.realpath(path) for path in (sys.base_prefix, sys.prefix)))


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in name:
        raise UsageError(f"run_program: {name!r} is no path within the program's folder")
    return str(path)


def _bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


def _memory(data: bytes) -> int:
    """A file that nobody can change, without a name, at its beginning."""
    descriptor = os.memfd_create("gymq", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
