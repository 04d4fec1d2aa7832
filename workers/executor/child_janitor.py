"""The janitor of an executor: a small process beside it that bounds the output of isolated calls, and clears up at its end.

Runs as a script, `python -I -S child_janitor.py <executor's pid> <its name> <temporary folder>`, and imports nothing of gymq.
Its stdin is the pipe that all calls print to. At the executor's end, however that came, it kills the calls' remaining
processes, including those outside their groups, and deletes their temporary folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

#: Bytes that an executor's calls may print in each period; the rest is cut. A traceback has some kilobytes.
ALLOWED = 1024**2

#: Seconds of that period.
RELEASE_PERIOD = 10.0

#: Seconds for clearing up.
CLEAR_LIMIT = 5.0

#: The environment variable that marks a call's descendants.
MARK = "GYMQ_EXECUTOR"

_PDEATHSIG = 1


class _Ended(Exception):
    """SIGTERM has come: the executor has ended."""


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Ended


def watch() -> None:
    """Pass on the output of calls, up to the bound."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    since, room, cut = time.monotonic(), ALLOWED, 0
    while True:
        ready = select.select([0], [], [], 1.0)[0]
        now = time.monotonic()
        if now - since >= RELEASE_PERIOD:
            if cut:
                _say(f"isolated calls printed too much: {cut} bytes were cut in {now - since:.0f} s")
            since, room, cut = now, ALLOWED, 0
        if not ready:
            continue
        if room > 0:
            data = os.read(0, min(room, 65536))
            if not data:
                time.sleep(1)  # every writer has ended: the signal is on its way
                continue
            room -= len(data)
            with contextlib.suppress(OSError):
                os.write(2, data)
        else:
            cut += os.splice(0, nowhere, ALLOWED)


def clear(name: str, folder: str) -> None:
    """Kill the calls' descendants, and delete their folder.

    Args:
        name: the executor's name, the value of their mark.
        folder: the temporary folder.
    """
    pipe = os.readlink("/proc/self/fd/0")
    mark = f"{MARK}={name}".encode()
    until = time.monotonic() + CLEAR_LIMIT
    while time.monotonic() < until and (pids := _descendants(pipe, mark)):
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    os.execvp("rm", ["rm", "-rf", "--", folder])


def _descendants(pipe: str, mark: bytes) -> list[int]:
    pids = []
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] == b"Z":
                    continue
            # Forks hold the pipe, and programs that they start have the mark; most have both.
            if any(_link(f"/proc/{pid}/fd/{number}") == pipe for number in (1, 2)):
                pids.append(int(pid))
                continue
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    pids.append(int(pid))
    return pids


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""


def _say(what: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"gymq: executor: {what}\n".encode())


if __name__ == "__main__":
    try:
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() == int(sys.argv[1]):
            watch()
    except _Ended:
        pass
    clear(sys.argv[2], sys.argv[3])
