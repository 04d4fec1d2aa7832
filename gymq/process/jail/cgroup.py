"""A control group of a program: bounds the memory of all its processes together, where this process may make one."""

from __future__ import annotations

import os
from contextlib import suppress

#: Bytes that a program's group may have beyond its memory and its folder: the first process, before it becomes the program.
BASE = 32 * 1024**2

#: The names of groups, before the warden's pid.
PREFIX = "gymq-sandbox-"


class Cgroup:
    """A group that holds no process yet.

    Args:
        parent: the folder of the group that it lies in.
        version: 1 or 2.
        memory: bytes of memory of all its processes.
        tasks: processes and threads.

    Raises:
        OSError: none can be made there.
    """

    def __init__(self, parent: str, version: int, memory: int, tasks: int) -> None:
        # The way to it is lost when this process's root is another one.
        self._parent = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._name = f"{PREFIX}{os.getpid()}"
        self._version = version
        try:
            self._sweep(parent)
            os.mkdir(self._name, dir_fd=self._parent)
            try:
                self._write("memory.max" if version == 2 else "memory.limit_in_bytes", memory)
                self._members = self._open("cgroup.procs" if version == 2 else "tasks")
            except OSError:
                self.remove()
                raise
        except OSError:
            os.close(self._parent)
            raise
        # Not everywhere: a kernel without accounting of swap, a parent that delegates memory alone.
        more = {"memory.swap.max": 0, "memory.oom.group": 1, "pids.max": tasks} if version == 2 else {}
        for name, value in (more or {"memory.memsw.limit_in_bytes": memory}).items():
            with suppress(OSError):
                self._write(name, value)

    def enter(self) -> None:
        """Move this process into it where that is quick: with version 1, which does not wait for other processors then."""
        if self._version == 1:
            os.write(self._members, b"0")

    def add(self, child: int) -> None:
        """Move a process into it, unless that is in it; what it starts later is in it, too."""
        if self._version == 2:
            os.write(self._members, str(child).encode())

    def remove(self) -> None:
        """Remove it, if all its processes are gone."""
        with suppress(OSError):
            os.rmdir(self._name, dir_fd=self._parent)

    def _sweep(self, parent: str) -> None:
        """Remove the groups of wardens that were killed."""
        for name in os.listdir(parent):
            if name.startswith(PREFIX) and not os.path.exists(f"/proc/{name.removeprefix(PREFIX)}"):
                with suppress(OSError):
                    os.rmdir(name, dir_fd=self._parent)

    def _open(self, name: str) -> int:
        return os.open(f"{self._name}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._parent)

    def _write(self, name: str, value: int) -> None:
        descriptor = self._open(name)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)


def make(memory: int, tasks: int) -> Cgroup | None:
    """Make a group for a program; None: this process may make none here.

    Args:
        memory: bytes of memory of all its processes.
        tasks: processes and threads.
    """
    with suppress(OSError):
        for parent, version in _parents():
            with suppress(OSError):
                return Cgroup(parent, version, memory, tasks)
    return None


def _parents() -> list[tuple[str, int]]:
    """Return the groups that a program's one could lie in, with their version."""
    found = []
    mounts = _mounts()
    with open("/proc/self/cgroup") as file:
        for line in file.read().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(",") and 1 in mounts:
                found.append((_place(*mounts[1], path), 1))
            elif not controllers and 2 in mounts:
                own = _place(*mounts[2], path)
                # A group with processes has children with bounds only at the root; beside it they may be.
                found += [(folder, 2) for folder in (own, os.path.dirname(own)) if _bounds_memory(folder)]
    return found


def _mounts() -> dict[int, tuple[str, str]]:
    """Return where the groups are mounted, by version: the place, and which group is there."""
    found = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.rstrip("\n").split(" ", 2)
            if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(" ")[-1].split(",")):
                group, place = before.split()[3:5]
                found[2 if kind == "cgroup2" else 1] = (place, group)
    return found


def _place(place: str, group: str, path: str) -> str:
    inner = path[len(group.rstrip("/")) :] if path.startswith(group) else ""
    return os.path.normpath(f"{place}/{inner}")


def _bounds_memory(folder: str) -> bool:
    try:
        with open(f"{folder}/cgroup.subtree_control") as file:
            return "memory" in file.read().split()
    except OSError:
        return False
