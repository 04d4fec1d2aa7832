"""The filter of system calls, judged by a machine of our own for both machines, and by this kernel."""

from __future__ import annotations

import errno
import json
import platform

import pytest

from gymq.process.sandbox import run_program
from gymq.process.syscall_filter import If, Rule, compile_rules, program_filter
from tests.support.bpf import judge
from tests.support.sandboxes import needs_namespaces

#: Calls of programs and what becomes of them: the numbers on x86_64 and aarch64, the arguments, the error.
CALLS = {
    "read": (0, 63, (), 0),
    "openat": (257, 56, (), 0),
    "execve": (59, 221, (), 0),
    "the last of those known": (466, 466, (), 0),
    "a UNIX socket": (41, 198, (1, 1), 0),
    "an internet socket": (41, 198, (2, 1), 0),
    "a socket of the host": (41, 198, (40, 1), errno.EAFNOSUPPORT),
    "a socket of the host with more bits": (41, 198, (1 << 32 | 40, 1), errno.EAFNOSUPPORT),
    "a socket of the kernel's ciphers": (41, 198, (38, 5), errno.EAFNOSUPPORT),
    "a pair of packet sockets": (53, 199, (17, 3), errno.EAFNOSUPPORT),
    "a list of addresses": (41, 198, (16, 3, 0), 0),
    "a socket of the packet filters": (41, 198, (16, 3, 12), errno.EPROTONOSUPPORT),
    "the terminal's size": (16, 29, (0, 0x5413), 0),
    "a terminal's input": (16, 29, (0, 0x5412), errno.EPERM),
    "a terminal's input with more bits": (16, 29, (0, 1 << 32 | 0x5412), errno.EPERM),
    "a paste": (16, 29, (0, 0x541C), errno.EPERM),
    "own limits": (302, 261, (0, 7), 0),
    "limits of pid 1": (302, 261, (1, 7), errno.EPERM),
    "a thread": (56, 220, (0x3D0F00,), 0),
    "a user namespace": (56, 220, (0x10000011,), errno.EPERM),
    "a mount namespace": (56, 220, (0x00020011,), errno.EPERM),
    "clone3": (435, 435, (), errno.ENOSYS),
    "io_uring_setup": (425, 425, (), errno.ENOSYS),
    "userfaultfd": (323, 282, (), errno.EPERM),
    "keyctl": (250, 219, (), errno.EPERM),
    "shmget": (29, 194, (), errno.ENOSYS),
    "unshare": (272, 97, (), errno.EPERM),
    "bpf": (321, 280, (), errno.EPERM),
    "open_by_handle_at": (304, 265, (), errno.EPERM),
}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("call", CALLS)
def test_each_call_is_judged_on_both_machines(call, machine):
    *numbers, arguments, error = CALLS[call]
    number = numbers[machine == "aarch64"]
    assert judge(program_filter(machine), machine, number, arguments) == error


def test_the_tables_of_other_machines_are_unknown():
    assert judge(program_filter("x86_64"), "i386", 20) == errno.ENOSYS
    assert judge(program_filter("x86_64"), "x86_64", 0x40000000) == errno.ENOSYS
    assert judge(program_filter("aarch64"), "arm", 20) == errno.ENOSYS
    assert program_filter("riscv64") == b""


def test_rules_are_tried_in_their_order_and_all_conditions_of_one_must_hold():
    read = {"x86_64": 0}
    two = (If(0, "in", (3, 4)), If(2, "not in", (5, 6)), If(4, "any", (8,)))
    code = compile_rules([Rule(read, 11, two), Rule(read, 12, (If(0, "in", (9,)),)), Rule({"aarch64": 0}, 13)], "x86_64", 14)
    judged = [judge(code, "x86_64", 0, given) for given in ((3, 1, 9), (4, 1, 8), (4, 5, 8), (2, 1, 8), (3, 1, 4), (9,), ())]
    assert judged == [11, 11, 14, 14, 14, 12, 14]


#: Makes calls, and prints the errors; argv: the calls as JSON.
CALLER = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
for number, *arguments in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    done = libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
    print(0 if done >= 0 else ctypes.get_errno())
"""


@needs_namespaces
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no filter for this machine")
def test_this_kernel_judges_a_programs_calls_so():
    # Given every refused call that would do nothing, were it allowed with these arguments
    machine = platform.machine()
    names = [name for name, call in CALLS.items() if call[3]]
    calls = [[CALLS[name][machine == "aarch64"], *CALLS[name][2]] for name in names]
    ran = run_program(["python", "-c", CALLER, json.dumps(calls)])
    assert dict(zip(names, map(int, ran.stdout.split()), strict=True)) == {name: CALLS[name][3] for name in names}


@needs_namespaces
def test_what_programs_use_works_within_the_filter():
    code = """
import multiprocessing, socket, subprocess, threading, tempfile, mmap, asyncio
assert subprocess.run(["echo", "x"], capture_output=True).stdout == b"x\\n"
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
a, b = socket.socketpair(); a.send(b"x"); assert b.recv(1) == b"x"
with tempfile.TemporaryFile() as file:
    file.write(bytes(4096)); file.flush(); mmap.mmap(file.fileno(), 4096).close()
async def main():
    process = await asyncio.create_subprocess_exec("true"); assert await process.wait() == 0
asyncio.run(main())
print("all")
"""
    ran = run_program(["python", "main.py"], files={"main.py": code}, seconds=30)
    assert ran.stdout == "all\n", ran
