"""A running program, seen from outside its walls: its warden's process, its output, and the reports of its end."""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gymq.process.program_output import CHUNK, ProgramOutput

Reason = Literal["", "timeout", "killed"]

#: Seconds beyond the limit after which the warden itself is killed.
WARDEN_GRACE = 10.0

#: The first code in the child, whose arguments are the folder of the package `jail` and two descriptors. The folder comes last,
#: so that nothing in it hides a module of Python's.
_WARDEN = "import sys; sys.path.append(sys.argv[1]); from jail import warden; warden.main()"

_FOLDER = str(Path(__file__).parent)


class ProgramEnd(NamedTuple):
    """The end of a program.

    Args:
        exit: its exit code; negative: the signal that ended it.
        stdout: its output, cut.
        stderr: its error output, cut.
        reason: "" if it ended by itself.
    """

    exit: int
    stdout: str
    stderr: str
    reason: Reason


class NoWalls(NamedTuple):
    """Why walls could not be made, before anything of the program was read.

    Args:
        why: the reason.
        number: the system's error; None: it was none.
    """

    why: str
    number: int | None

    def __str__(self) -> str:
        return self.why


class RunningProgram:
    """A running program, seen from outside the walls.

    Args:
        config: what the warden must know.
        program: the program's own data: a line of JSON, then its files.
        stdin: its input.
    """

    def __init__(self, config: dict[str, Any], program: Sequence[bytes], stdin: bytes) -> None:
        self._limit = time.monotonic() + config["seconds"] + WARDEN_GRACE
        status, status_writer = os.pipe()
        config_file, stdin_file = _memory(json.dumps(config).encode(), b"\n", *program), _memory(stdin)
        try:
            # Without this process's environment, which a child must not read.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WARDEN, _FOLDER, str(config_file), str(status_writer)],
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

    def wait(self) -> ProgramEnd | NoWalls:
        """Wait for its end, or for the word that its walls could not be made."""
        try:
            up, report = self._read()
        finally:
            self._end()
        if not up:
            why = report.get("failed") or ("its seconds were over" if report.get("timeout") else "its warden died")
            return NoWalls(why, report.get("errno"))
        stdout, stderr = (stream.text() for stream in self._streams)
        code = report.get("exit", -signal.SIGKILL)
        reason: Reason = "" if "exit" in report else "killed"
        if report.get("timeout") or code == -signal.SIGXCPU:
            reason = "timeout"
        return ProgramEnd(code, stdout, stderr, reason)

    def _read(self) -> tuple[bool, dict[str, Any]]:
        """Read the program's output and the reports; return if its walls were up, and its end, empty: its warden died."""
        reports = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            for stream in self._streams:
                selector.register(stream, selectors.EVENT_READ)
            ended = False
            while not ended and (left := self._limit - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if isinstance(key.fileobj, ProgramOutput):
                        if not key.fileobj.take():
                            selector.unregister(key.fileobj)
                    elif data := self._status.read(CHUNK):
                        reports += data
                    else:  # the warden has ended; no more output follows
                        for stream in self._streams:
                            stream.take_rest()
                        ended = True
                        break
        said = [json.loads(line) for line in reports.splitlines()]
        up = bool(said) and "up" in said[0]
        # With walls up, only an end counts: nothing that the program does is a failure of theirs.
        return up, next((report for report in said if not up or "exit" in report), {})

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


def _memory(*data: bytes) -> int:
    """Return the descriptor of a nameless, sealed file with these bytes, at its beginning."""
    descriptor = os.memfd_create("gymq", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.writelines(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
