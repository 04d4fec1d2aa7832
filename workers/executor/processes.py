"""Process groups, orphans and memory limits: what keeps an isolated call's damage to its own process.

Every child of an executor leads a process group, which dies with it. Both the child and the parent adopt orphans, so
that a process which left the group does not get away. On systems without /proc only the groups are seen to.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Bytes that a call may take above what its process holds when it begins: large enough for data frames and small models,
#: small enough that a few runaway calls do not bring the machine down.
DEFAULT_MEMORY = 2 * 1024**3

#: Bytes of one file that a call may write: larger than any data that a tool makes in a minute, smaller than a disk.
DEFAULT_FILE_SIZE = 4 * 1024**3

#: The niceness of an executor's children: they may spin, and what runs beside them (actors, the parent) waits for mail.
#: With 5 a spinner gets a third of what a process of niceness 0 gets when both want a core: with much less, calls that do
#: no harm would meet their time limits on a busy machine.
NICE = 5

#: Seconds that one try to kill what a call left may take: the parent's loop stands still meanwhile.
KILL_LIMIT = 1.0

#: prctl(2): a signal at the parent's death; orphaned descendants become children of the calling process.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

_VM_DATA = re.compile(r"^VmData:\s*(\d+) kB$", re.M)
_OOM_KILL = re.compile(r"^oom_kill (\d+)$", re.M)


def lead_group() -> None:
    """Make this process the leader of a session and group of its own."""
    if os.getpgrp() != os.getpid():
        os.setsid()


def die_with(parent: int) -> None:
    """Be killed when the parent dies, in whatever code this process is then; nothing of it asks for that by itself.

    Args:
        parent: its pid.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def give_way() -> None:
    """Get less of the processor than those who are not told to."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    # Where the kernel weighs sessions against each other, a process's niceness counts within its session only.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_group(pid: int) -> None:
    """Kill a child with its whole group.

    Args:
        pid: the child; it leads a group, unless it died before it could.
    """
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def kill_children(spare: Collection[int] = ()) -> bool:
    """Kill this process's children and reap them, and whatever becomes its child thereby.

    Args:
        spare: the pids of children to leave alone.

    Returns:
        Whether none is left; some may be after `KILL_LIMIT`, of a program that forks as fast as it is killed.
    """
    until = time.monotonic() + KILL_LIMIT
    while found := [pid for pid in _children() if pid not in spare]:
        # All are killed before any is waited for: each may be about to fork.
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > until:
            return False
    return True


def has_children() -> bool:
    """Whether this process has any child, dead or alive; costs one system call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@contextmanager
def limits(extra: int = DEFAULT_MEMORY) -> Iterator[None]:
    """Make allocations fail beyond what is in use now plus `extra`, and files beyond `DEFAULT_FILE_SIZE`; leave no core file.

    Private writable memory is what counts (RLIMIT_DATA), not the address space: libraries reserve tens of gigabytes of
    that without using it. Descendants inherit the limit, each for itself.

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
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(match[1]) * 1024 + extra
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    core = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, core[1]))
    file = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE,
        (DEFAULT_FILE_SIZE if file[1] == resource.RLIM_INFINITY else min(DEFAULT_FILE_SIZE, file[1]), file[1]),
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        resource.setrlimit(resource.RLIMIT_FSIZE, file)
        resource.setrlimit(resource.RLIMIT_CORE, core)


def memory_kills() -> int | None:
    """How many processes of this container the kernel has killed for want of memory; None: it does not say."""
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
        # Quick enough to overtake what forks; not every kernel has it.
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
        # "pid (name) state ppid ...", and the name may hold anything.
        if stat.rpartition(")")[2].split()[1] == me:
            yield int(pid)
