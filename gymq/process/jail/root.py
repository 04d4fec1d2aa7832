"""The program's root: a file system that holds only what is named here."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress

from . import kernel

#: The parts of the system that programs see, read-only, where they exist; `sandbox` adds others.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/certs")
_DEVICES = ("null", "zero", "full", "random", "urandom")

#: Files and folders of /proc that tell of the machine what no program needs.
_PROC = ("acpi", "cmdline", "kallsyms", "kcore", "key-users", "keys", "latency_stats", "modules", "sched_debug", "timer_list")

#: Inodes of the temporary folder: each takes about a kibibyte of the kernel's memory.
INODES = 16_384

_READ_ONLY = kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV


class Root:
    """The root of a program, made in a mount namespace of its own.

    Args:
        python: folders and files of this Python, to be seen at the same paths.
        covered: folders and files within the system and this Python that are to be seen empty.
        readable: further folders and files, to be seen at the same paths.
        disk: bytes of the program's folder, `/tmp`.
        owner: its user; None: this process's.
    """

    def __init__(
        self, python: Sequence[str], covered: Sequence[str], readable: Sequence[str], disk: int, owner: int | None
    ) -> None:
        self.python = python
        self.covered = covered
        self.readable = readable
        self.disk = disk
        self.owner = owner
        self._base, self._root = "/proc", "/proc/root"
        self._covers = 0

    def enter(self) -> None:
        """Make it, and make it the root of this process."""
        base, root = self._base, self._root
        kernel.mount("none", "/", None, kernel.REC | kernel.PRIVATE)
        kernel.mount("tmpfs", base, "tmpfs", kernel.NOSUID | kernel.NODEV, "size=1m,mode=755")
        os.umask(0o022)
        os.mkdir(root)
        # Comes first: readable paths may lie in the real /tmp.
        os.mkdir(f"{root}/tmp")
        owner = "" if self.owner is None else f",uid={self.owner},gid={self.owner}"
        size = f"size={self.disk},nr_inodes={INODES},mode=700"
        kernel.mount("tmpfs", f"{root}/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV, size + owner)
        for path in (*SYSTEM, *_ETC, *self.python):
            self._show(path)
        covers = [cover for path in self.covered if (cover := self._cover(root + path))]
        for path in self.readable:
            self._show(path)
        for cover in covers:  # only now: a readable path may lie in one
            kernel.protect(cover, _READ_ONLY)
        self._make_devices()
        self._make_proc()
        kernel.protect(base, kernel.ATTR_RDONLY, recursive=False)
        kernel.call("sethostname", b"sandbox", ctypes.c_size_t(7))
        os.chdir(base)
        kernel.call("pivot_root", b".", b".")
        kernel.call("umount2", b".", kernel.DETACH)
        # Not the root of the mounts: from such a place no user namespace, and no capability with it, can be made.
        os.chroot("/root")
        os.chdir("/tmp")

    def _show(self, path: str) -> None:
        """Show a folder or file of the machine, read-only, if it exists and is not to be seen yet."""
        target = self._root + path
        if os.path.islink(path) and path in SYSTEM:
            os.symlink(os.readlink(path), target)
        elif os.path.exists(path) and not os.path.exists(target):
            if os.path.isdir(path):
                os.makedirs(target)
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                kernel.write_text(target, "")
            kernel.mount(path, target, None, kernel.BIND | kernel.REC)
            kernel.protect(target, _READ_ONLY)

    def _cover(self, target: str) -> str:
        """Put something empty over a folder or file, and return its place; "": it is not there."""
        if os.path.islink(target) or not os.path.exists(target):
            return ""
        self._covers += 1
        cover = f"{self._base}/cover{self._covers}"
        if os.path.isdir(target):
            os.mkdir(cover)
        else:
            kernel.write_text(cover, "")
        kernel.mount(cover, target, None, kernel.BIND)
        return target

    def _make_devices(self) -> None:
        os.mkdir(f"{self._root}/dev")
        for name in _DEVICES:
            kernel.write_text(f"{self._root}/dev/{name}", "")
            kernel.mount(f"/dev/{name}", f"{self._root}/dev/{name}", None, kernel.BIND)
        for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
            os.symlink(target, f"{self._root}/dev/{name}")
        # Shared memory counts against the folder's bound.
        os.symlink("/tmp", f"{self._root}/dev/shm")

    def _make_proc(self) -> None:
        proc = f"{self._root}/proc"
        os.mkdir(proc)
        with suppress(OSError):  # a container may forbid it, and then /proc stays empty
            kernel.mount("proc", proc, "proc", kernel.NOSUID | kernel.NODEV | kernel.NOEXEC)
            for name in _PROC:
                self._cover(f"{proc}/{name}")
            kernel.protect(proc, kernel.ATTR_RDONLY)
