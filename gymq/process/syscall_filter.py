"""The filter of system calls around a program: a program of the kernel's BPF machine, written by hand.

It refuses what no program needs and what escapes have been made of; the other walls do not rely on it. A call of another
machine's table (32 bits on a kernel of 64) is refused as unknown, or the numbers below would mean others.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

# <linux/audit.h>
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: The bit of a call's number that makes it one of the x32 table.
_X32 = 0x40000000

# <linux/bpf_common.h>: load a word at an offset; jump, jump if equal, if at least, if any bit of
# a mask is set; return.
_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06

# <linux/seccomp.h>: what a filter reads of a call, and what it returns.
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

#: Flags of clone(2) that make a namespace; <linux/sched.h>.
_NAMESPACES = 0x7E020000

# <asm-generic/ioctls.h>: put characters into a terminal's input.
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

# <linux/socket.h>; of netlink's protocols only that of routes, with which the C library lists addresses.
_UNIX, _INET, _NETLINK, _INET6 = 1, 2, 16, 10


class If(NamedTuple):
    """A condition on one word of a call's arguments.

    Args:
        word: argument n's lower half is word 2n, its upper half 2n + 1.
        test: `in` the values, `not in` them, or `any` bit of them is set.
        values: the values.
    """

    word: int
    test: str
    values: tuple[int, ...]


class Rule(NamedTuple):
    """The fate of a system call.

    Args:
        numbers: the call's numbers, by machine.
        error: the error that it gets; 0: it is allowed.
        conditions: all of them must hold.
    """

    numbers: Mapping[str, int]
    error: int
    conditions: tuple[If, ...] = ()


def compile_rules(rules: Sequence[Rule], machine: str, otherwise: int = 0) -> bytes:
    """Return the BPF program of some rules, the first that holds counts.

    Args:
        rules: the rules.
        machine: `x86_64` or `aarch64`.
        otherwise: the error of a call for which none holds; 0: it is allowed.
    """
    unknown = _end(errno.ENOSYS)
    code = [_step(_LOAD, _MACHINE), _step(_EQUAL, _MACHINES[machine], yes=1), unknown, _step(_LOAD, _NUMBER)]
    if machine == "x86_64":
        code += [_step(_AT_LEAST, _X32, no=1), unknown]
    for rule in rules:
        if machine in rule.numbers:
            body = _judge(rule)
            code += [_step(_EQUAL, rule.numbers[machine], no=len(body)), *body]
    return b"".join([*code, _end(otherwise)])


@cache
def program_filter(machine: str | None = None) -> bytes:
    """Return the filter of programs; empty: there is none for this machine.

    Args:
        machine: None: this one.
    """
    machine = platform.machine() if machine is None else machine
    return compile_rules(_RULES, machine) if machine in _MACHINES else b""


def _judge(rule: Rule) -> list[bytes]:
    """Return the steps after a call's number has matched; where a condition fails, it is loaded again for the next rule."""
    if not rule.conditions:
        return [_end(rule.error)]
    tested: list[tuple[int, int, int | None]] = []  # the step, its value, and where to go if it holds; None: to the failure
    for word, test, values in rule.conditions:
        tested.append((_LOAD, _ARGUMENTS + 4 * word, 0))
        if test == "not in":
            tested += [(_EQUAL, value, None) for value in values]
        else:  # past the values left, and past the step to the failure
            code = _ANY if test == "any" else _EQUAL
            tested += [(code, value, len(values) - place) for place, value in enumerate(values)]
            tested.append((_JUMP, 0, None))
    steps = []
    for place, (code, value, target) in enumerate(tested):
        failure = len(tested) - place  # the step after the end
        if code == _JUMP:
            steps.append(_step(_JUMP, failure))
        else:
            steps.append(_step(code, value, yes=failure if target is None else target))
    return [*steps, _end(rule.error), _step(_LOAD, _NUMBER)]


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _end(error: int) -> bytes:
    return _step(_RETURN, _ERRNO | error if error else _ALLOW)


def _calls(error: int, **numbers: tuple[int, int | None]) -> list[Rule]:
    """Return rules that refuse some calls, each with its numbers on x86_64 and aarch64."""
    return [
        Rule({machine: number for machine, number in zip(_MACHINES, pair, strict=True) if number is not None}, error)
        for pair in numbers.values()
    ]


_SOCKET, _SOCKETPAIR = {"x86_64": 41, "aarch64": 198}, {"x86_64": 53, "aarch64": 199}
_IOCTL, _CLONE, _PRLIMIT = {"x86_64": 16, "aarch64": 29}, {"x86_64": 56, "aarch64": 220}, {"x86_64": 302, "aarch64": 261}

_RULES: list[Rule] = [
    # Families: AF_VSOCK reaches the machine's host past the network namespace, others have been doors into the kernel.
    *(Rule(call, errno.EAFNOSUPPORT, (If(0, "not in", (_UNIX, _INET, _INET6, _NETLINK)),)) for call in (_SOCKET, _SOCKETPAIR)),
    Rule(_SOCKET, errno.EPROTONOSUPPORT, (If(0, "in", (_NETLINK,)), If(4, "not in", (0,)))),
    Rule(_IOCTL, errno.EPERM, (If(2, "in", (_TIOCSTI, _TIOCLINUX)),)),
    # Limits of others: pid 1 has the program's user, and a limit kills it.
    Rule(_PRLIMIT, errno.EPERM, (If(0, "not in", (0,)),)),
    Rule(_CLONE, errno.EPERM, (If(0, "any", (_NAMESPACES,)),)),
    # Its flags are in memory, where a filter cannot look; the C library then uses clone.
    *_calls(errno.ENOSYS, clone3=(435, 435)),
    # Queues to kernel threads that no filter sees, and memory that no limit counts.
    *_calls(errno.ENOSYS, io_uring_setup=(425, 425), io_uring_enter=(426, 426), io_uring_register=(427, 427)),
    *_calls(errno.ENOSYS, memfd_secret=(447, 447)),
    # System V's objects outlive processes, and no limit counts them.
    *_calls(errno.ENOSYS, shmget=(29, 194), msgget=(68, 186), semget=(64, 190)),
    # Keyrings know no namespace.
    *_calls(errno.EPERM, add_key=(248, 217), request_key=(249, 218), keyctl=(250, 219)),
    # Namespaces and mounts.
    *_calls(
        errno.EPERM,
        unshare=(272, 97), setns=(308, 268), mount=(165, 40), umount2=(166, 39), pivot_root=(155, 41), chroot=(161, 51),
        open_tree=(428, 428), move_mount=(429, 429), fsopen=(430, 430), fsconfig=(431, 431), fsmount=(432, 432),
        fspick=(433, 433), mount_setattr=(442, 442), open_tree_attr=(467, 467),
    ),
    # Files by handle, past every path.
    *_calls(errno.EPERM, name_to_handle_at=(303, 264), open_by_handle_at=(304, 265)),
    # Other processes; ptrace stays, as sanitizers need it, and reaches no process but the program's own.
    *_calls(errno.EPERM, kcmp=(312, 272), pidfd_getfd=(438, 438), process_madvise=(440, 440)),
    *_calls(errno.EPERM, move_pages=(279, 239), migrate_pages=(256, 238)),
    # Watching and changing the kernel and the machine.
    *_calls(
        errno.EPERM,
        bpf=(321, 280), perf_event_open=(298, 241), userfaultfd=(323, 282), fanotify_init=(300, 262),
        kexec_load=(246, 104), kexec_file_load=(320, 294), init_module=(175, 105), finit_module=(313, 273),
        delete_module=(176, 106), reboot=(169, 142), swapon=(167, 224), swapoff=(168, 225), acct=(163, 89), syslog=(103, 116),
        quotactl=(179, 60), quotactl_fd=(443, 443), settimeofday=(164, 170), clock_settime=(227, 112), vhangup=(153, 58),
        lookup_dcookie=(212, 18), nfsservctl=(180, 42), iopl=(172, None), ioperm=(173, None), modify_ldt=(154, None),
        uselib=(134, None), sysfs=(139, None), ustat=(136, None),
    ),
]  # fmt: skip
