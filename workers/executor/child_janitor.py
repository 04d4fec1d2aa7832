"""What looks after an executor from outside: a small process that bounds what isolated calls print, and clears up at its end.

Runs as a script, `python -I -S keeper.py <executor's pid> <its name> <temporary folder>`; its stdin is the pipe that all
calls print to. When the executor ends, killed or not, it kills what calls have left, also what has left their groups, and
deletes their temporary folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

#: Bytes that the calls of an executor may print in each period; the rest is cut. A traceback is some kilobytes.
ALLOWED = 1024**2

#: Seconds of that period.
RELEASE_PERIOD = 10.0

#: Seconds that clearing up may take.
CLEAR_LIMIT = 5.0

#: The variable that marks what descends from a call.
MARK = "GYMQ_EXECUTOR"

_PDEATHSIG = 1


class _Ended(Exception):
    pass


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Ended


def watch() -> None:
    """Pass on what calls print, up to the bound."""
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
                time.sleep(1)  # nobody can print any more: the signal is on its way
                continue
            room -= len(data)
            with contextlib.suppress(OSError):
                os.write(2, data)
        else:
            cut += os.splice(0, nowhere, ALLOWED)


def clear(name: str, folder: str) -> None:
    """Kill what descends from calls, and delete their folder."""
    pipe = os.readlink("/proc/self/fd/0")
    mark = f"{MARK}={name}".encode()
    until = time.monotonic() + CLEAR_LIMIT
    while time.monotonic() < until and (found := list(_descendants(pipe, mark))):
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    os.execvp("rm", ["rm", "-rf", "--", folder])


def _descendants(pipe: str, mark: bytes) -> list[int]:
    found = []
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] == b"Z":
                    continue
            # Forks print to the pipe, and what they start has the variable; most have both.
            if any(_link(f"/proc/{pid}/fd/{number}") == pipe for number in (1, 2)):
                found.append(int(pid))
                continue
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found.append(int(pid))
    return found


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
