"""The sandbox: runs a model's program without access to network, other processes, secrets and the machine's files.

    from gymq import run_program

    ran = run_program(["python", "main.py"], files={"main.py": code}, stdin="3 4", seconds=5)
    ran.ok, ran.stdout, ran.reason

The walls between a program and the machine depend on the machine; `ProgramResult.walls` tells which they were. A process
chooses them once, by a program of its own, and no program changes that:

    namespaces  user, process, network, mount and IPC namespaces of its own; needs Linux 5.12, and root or a kernel that lets
                users make namespaces
    uid         a user of its own that owns nothing, for root in a container without namespaces: the network is open
    weak        limits and an empty environment only: the program runs as this user; only where `GYMQ_SANDBOX=weak` accepts it

`GYMQ_SANDBOX` is the weakest that this process accepts, `uid` unless it says otherwise.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from gymq.errors import GymqError, UsageError
from gymq.process import python_files
from gymq.process.running_program import ProgramEnd, Reason, RunningProgram
from gymq.process.syscall_filter import program_filter

log = logging.getLogger(__name__)

Walls = Literal["namespaces", "uid", "weak"]

#: From the strongest to the weakest.
WALLS: tuple[Walls, ...] = ("namespaces", "uid", "weak")

#: The environment variable that names the weakest walls that this process accepts.
ACCEPT = "GYMQ_SANDBOX"

#: Default seconds of wall clock, and of CPU for each process.
SECONDS = 10.0

#: Default bytes of private memory of each process: enough for numpy on data that fits a prompt.
MEMORY = 512 * 1024**2

#: Default bytes of the program's folder, and of each file. The folder lies in memory.
DISK = 64 * 1024**2

#: Default number of processes and threads: numpy starts one per core.
PROCESSES = 64

#: What a machine lacks for a moment: no reason to take its walls for impossible.
_PASSING = {errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EINTR, errno.EBUSY, errno.ENOBUFS}

#: The walls that were chosen in this process; empty until then.
_chosen: list[Walls] = []
_choice = threading.Lock()


class ProgramResult(msgspec.Struct, frozen=True):
    """The outcome of a program.

    Args:
        exit: the exit code; negative: the signal that ended it; 127: the program does not exist.
        stdout: its output, cut at 1 MiB with a note.
        stderr: its error output, likewise.
        reason: "" if it ended by itself, else `timeout`, or `killed`: so was its pid 1 or its warden, as when memory ended.
        walls: the walls around it: `namespaces`, `uid` or `weak`.
        seconds: the wall-clock time, with the making of the walls.
    """

    exit: int
    stdout: str
    stderr: str
    reason: Reason
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
    minimum: Walls = "weak",
) -> ProgramResult:
    """Run an untrusted program and wait for its end; it blocks, so call it in a tool that is `def`, best an isolated one.

        ran = run_program(["python", "main.py"], files={"main.py": code}, stdin="3 4", seconds=5)
        return ran.stdout if ran.ok else f"failed: {ran.reason or ran.stderr}"

    The program runs in a folder of its own, `/tmp` within namespaces, which holds `files` and is deleted afterwards. It sees
    the system's programs and libraries and this Python with its packages, read-only, but for gymq and the packages of installed
    environments, which may hold answers. `python` is this Python. Arguments and files that cannot be are the program's own
    fault: it ends with 127.

    Args:
        argv: the program and its arguments.
        stdin: its input.
        files: files to put into its folder, by their relative paths.
        seconds: wall-clock seconds until it is killed, with all processes that it started.
        memory: bytes of private memory of each process, and, where this process may make a control group, of all together.
        disk: bytes of its folder, and of each file.
        processes: the number of processes and threads it may have at once.
        readable: further folders and files that it may read, at the same paths.
        minimum: the weakest walls that will do; `GYMQ_SANDBOX` may ask for stronger ones.

    Raises:
        GymqError: this machine has no walls that are strong enough, or could not make them this time.
        UsageError: `argv` is empty, a limit is not positive, or there are no such walls.
    """
    if not argv:
        raise UsageError("run_program: argv is empty; name a program")
    for name, limit in (("seconds", seconds), ("memory", memory), ("disk", disk), ("processes", processes)):
        if not 0 < limit < 1 << 62:
            raise UsageError(f"run_program: {name} is {limit}; give a positive number")
    bodies = {name: _bytes(data) for name, data in (files or {}).items()}
    program = {"argv": list(argv), "files": [[name, len(data)] for name, data in bodies.items()]}
    config = _config(seconds, memory, disk, processes) | {"walls": _choose(minimum)}
    started = time.monotonic()
    config["readable"] = [os.path.abspath(path) for path in readable]
    config["covered"] = [path for path in config["covered"] if path not in config["readable"]]
    outcome = RunningProgram(config, [json.dumps(program).encode() + b"\n", *bodies.values()], _bytes(stdin)).wait()
    if isinstance(outcome, ProgramEnd):
        return ProgramResult(*outcome, config["walls"], time.monotonic() - started)
    # Never weaker walls instead: whatever this was, a program may have brought it about.
    raise GymqError(f"the sandbox's walls ({config['walls']}) could not be made this time: {outcome}; try again")


def _config(seconds: float, memory: int, disk: int, processes: int) -> dict[str, Any]:
    """Return what the warden must know of every run, and nothing of the program."""
    return {
        "seconds": seconds,
        "memory": memory,
        "disk": disk,
        "processes": processes,
        "python": python_files.shown(),
        "covered": python_files.covered(),
        "readable": [],
        "filter": program_filter().hex(),
        "path": f"{os.path.realpath(os.path.dirname(sys.executable))}:/usr/local/bin:/usr/bin:/bin",
        "tmp": tempfile.gettempdir(),
        "parent": os.getpid(),
    }


def _choose(minimum: Walls) -> Walls:
    """Return the strongest walls that can be made in this process, chosen once by a program of our own.

    Args:
        minimum: the weakest that will do.
    """
    accepted = os.environ.get(ACCEPT) or "uid"
    for place, name in ((f"the environment variable {ACCEPT}", accepted), ("run_program: minimum", minimum)):
        if name not in WALLS:
            raise UsageError(f"{place} is {name!r}; choose from {', '.join(WALLS)}")
    weakest = min(WALLS.index(minimum), WALLS.index(accepted))
    with _choice:
        problems: list[str] = []
        if not _chosen:
            problems = _probe(WALLS[: WALLS.index(accepted) + 1])
        if _chosen and WALLS.index(_chosen[0]) <= weakest:
            return _chosen[0]
    if _chosen:
        problems = [f"it has {_chosen[0]}"]
    raise GymqError(
        f"no sandbox for programs on this machine, {WALLS[weakest]} or stronger ({'; '.join(problems)}): allow user "
        f"namespaces, run the executor as root, or accept a program that can do what this user can with {ACCEPT}=weak"
    )


def _probe(candidates: Sequence[Walls]) -> list[str]:
    """Choose the first walls that can be made, and return why others cannot.

    Args:
        candidates: the walls that are accepted, the strongest first.

    Raises:
        GymqError: the machine lacks something for the moment, which says nothing of its walls.
    """
    if sys.platform != "linux":
        raise GymqError(f"no sandbox for programs on {sys.platform}: run the executor on Linux")
    problems: list[str] = []
    for walls in candidates:
        if walls == "uid" and os.geteuid() != 0:
            continue
        program = json.dumps({"argv": ["true"], "files": []}).encode() + b"\n"
        outcome = RunningProgram(_config(SECONDS, MEMORY, DISK, PROCESSES) | {"walls": walls}, [program], b"").wait()
        if isinstance(outcome, ProgramEnd):
            _chosen.append(walls)
            if walls != "namespaces":
                why = f" ({'; '.join(problems)})" if problems else ""
                log.warning("sandbox: %s%s", _WARNINGS[walls], why)
            break
        if outcome.number is None or outcome.number in _PASSING:
            raise GymqError(f"the sandbox's walls ({walls}) could not be tried: {outcome}; try again")
        problems.append(f"{walls}: {outcome}")
    return problems


_WARNINGS = {
    "uid": "programs run as a user of their own, without namespaces: they can reach the network",
    "weak": "programs run with limits only: they can read and do what this user can",
}


def _bytes(data: str | bytes) -> bytes:
    # A model's text may hold lone surrogates: what becomes of them is for the program to see.
    return data.encode(errors="surrogatepass") if isinstance(data, str) else data
