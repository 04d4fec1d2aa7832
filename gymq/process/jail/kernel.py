"""The kernel's calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os
import platform

# <linux/sched.h>
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
# <sys/mount.h>, <linux/mount.h>
NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE, DETACH = 2, 4, 8, 4096, 16384, 1 << 18, 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_SETATTR = -100, 0x8000, 442
# <sys/prctl.h>, <linux/seccomp.h>
PDEATHSIG, DUMPABLE, SUBREAPER, NO_NEW_PRIVS = 1, 4, 36, 38
_SET_SECCOMP, _MODE_FILTER = 22, 2
# <linux/keyctl.h>
_KEYCTL, _JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1

_libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0 on success.

    Args:
        function: its name.
        arguments: its arguments; numbers that are no `int` in C as objects of ctypes.

    Raises:
        OSError: it failed.
    """
    if getattr(_libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process.

    Args:
        option: the attribute.
        value: its value.
    """
    call("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Mount a file system, or bind a path to another place.

    Args:
        source: the device's name, or the path to bind.
        target: where it is to be seen.
        kind: the file system; None: it is bound.
        flags: those of <sys/mount.h>.
        data: the file system's options.
    """
    call("mount", source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), data.encode())


def protect(target: str, attributes: int, *, recursive: bool = True) -> None:
    """Add attributes to a mount.

    Args:
        target: where it is mounted.
        attributes: those of `ATTR_*`.
        recursive: whether mounts below it get them, too.
    """

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace")]

    setting = Attributes(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    call("syscall", _MOUNT_SETATTR, _AT_FDCWD, target.encode(), flags, ctypes.byref(setting), ctypes.c_size_t(32))


def leave_keyrings() -> None:
    """Join an empty session keyring in place of the one that this process inherited."""
    number = _KEYCTL.get(platform.machine())
    if number is not None:
        _libc.syscall(number, _JOIN_SESSION_KEYRING, None)  # refused in many containers, which then have no keyrings at all


def filter_calls(code: bytes) -> None:
    """Let the kernel judge each later system call of this process and its children.

    Args:
        code: a program of `gymq.process.syscall_filter`.
    """

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    given = Filter(len(code) // 8, code)
    call("prctl", _SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(given), ctypes.c_ulong(0), ctypes.c_ulong(0))


def write_text(path: str, text: str) -> None:
    """Write a file.

    Args:
        path: the file.
        text: its content.
    """
    with open(path, "w") as file:
        file.write(text)
