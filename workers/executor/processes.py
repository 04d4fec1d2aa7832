"""Process groups, orphans and resource limits, which confine an isolated call's damage to its own process.

Every child of an executor leads a process group, which dies with it. Both the child and the parent adopt orphans, so
that a process which left the group does not escape. On systems without /proc only the groups are covered.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Bytes of memory that a call may take beyond its process's at the beginning: enough for data frames and small models, and
#: few enough that the machine survives some runaway calls.
DEFAULT_MEMORY = 2 * 1024**3

#: Bytes of one file that a call may write: more than a tool writes in a minute, less than a disk.
DEFAULT_FILE_SIZE = 4 * 1024**3

#: The niceness of an executor's children: they may spin beside actors and the parent, which wait for mail. With 5 a spinner
#: gets a third of the share of a process of niceness 0; with much less, harmless calls would meet their time limits on a
#: busy machine.
NICE = 5

#: Seconds for one attempt to kill a call's remains: the parent's loop stands still meanwhile.
KILL_LIMIT = 1.0

_VM_DATA = re.compile(r"^VmData:\s*(\d+) kB$", re.M)
_OOM_KILL = re.compile(r"^oom_kill (\d+)$", re.M)


def lead_group() -> None:
    """Make this process the leader of a session and group of its own."""
    if os.getpgrp() != os.getpid():
        os.setsid()


def lower_priority() -> None:
    """Lower this process's priority to `NICE`."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    # Where the kernel schedules sessions as groups, a process's niceness counts within its session only.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))


def kill_group(pid: int) -> None:
    """Kill a child with its whole group.

    Args:
        pid: the child's, which is its group's, too, unless the child died very early.
    """
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def kill_children(spare: Collection[int] = ()) -> bool:
    """Kill and reap this process's children, and the orphans that thereby become its children.

    Args:
        spare: the pids of children to leave alone.

    Returns:
        Whether none is left; a program that forks as fast as it is killed survives `KILL_LIMIT`.
    """
    until = time.monotonic() + KILL_LIMIT
    while pids := [pid for pid in _children() if pid not in spare]:
        # All are killed before any is waited for: each may be about to fork.
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > until:
            return False
    return True


def has_children() -> bool:
    """Return whether this process has any child, dead or alive, at the cost of one system call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@contextmanager
def limits(extra: int = DEFAULT_MEMORY) -> Iterator[None]:
    """Limit memory to the present use plus `extra`, and files to `DEFAULT_FILE_SIZE`; forbid core files.

    The limit is on private writable memory (RLIMIT_DATA): libraries reserve tens of gigabytes of address space without
    using it. Descendants inherit the limit, each for itself.

    Args:
        extra: bytes.
    """
    try:
        match = _VM_DATA.search(Path("/proc/self/status").read_text())
    except OSError:
        match = None
    if match is None:
        yield
        return
    wanted = {
        resource.RLIMIT_DATA: int(match[1]) * 1024 + extra,
        resource.RLIMIT_FSIZE: DEFAULT_FILE_SIZE,
        resource.RLIMIT_CORE: 0,
    }
    before = {kind: resource.getrlimit(kind) for kind in wanted}
    for kind, (_, hard) in before.items():
        resource.setrlimit(kind, (wanted[kind] if hard == resource.RLIM_INFINITY else min(wanted[kind], hard), hard))
    try:
        yield
    finally:
        for kind, limit in before.items():
            resource.setrlimit(kind, limit)


def memory_kills() -> int | None:
    """Return the number of processes of this container that the kernel has killed for lack of memory; None: unknown."""
    try:
        path = Path("/proc/self/cgroup").read_text().splitlines()[-1].partition("::")[2]
        for folder in (Path("/sys/fs/cgroup") / path.lstrip("/"), Path("/sys/fs/cgroup")):
            events = folder / "memory.events"
            if events.is_file() and (match := _OOM_KILL.search(events.read_text())):
                return int(match[1])
    except (OSError, IndexError):
        pass
    return None


def _children() -> Iterator[int]:
    me = str(os.getpid())
    try:
        # Fast enough to overtake a program that forks; some kernels lack it.
        yield from map(int, Path(f"/proc/self/task/{me}/children").read_text().split())
        return
    except OSError:
        pass
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        # "pid (name) state ppid ..."; the name may hold any characters.
        if stat.rpartition(")")[2].split()[1] == me:
            yield int(pid)
