"""The profile for containers of executors: no engine runs here, so it is compiled and loaded around the sandbox."""

from __future__ import annotations

import errno
import json
import platform
from pathlib import Path

import pytest
import yaml

from gymq.process.syscall_filter import If, Rule, compile_rules
from tests.support.bpf import judge
from tests.support.sandboxes import NOBODY, PYTHON, as_another, needs_root

ROOT = Path(__file__).parents[2]
PROFILE = json.loads((ROOT / "deploy" / "seccomp.json").read_text())

WORDS = (ROOT / "tests" / "support" / "syscalls_x86_64.txt").read_text().split()
NUMBERS = {name: int(number) for name, number in zip(WORDS[::2], WORDS[1::2], strict=True)}

#: Loads a filter and becomes a program; argv: the filter's file, the program.
LOADER = """
import ctypes, os, sys
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
code, libc = open(sys.argv[1], "rb").read(), ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(Filter(len(code) // 8, code)), 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


def rules(profile: dict) -> list[Rule]:
    """The rules of a profile, as Docker reads them: what none allows gets the default error."""
    made = []
    for rule in profile["syscalls"]:
        assert rule["action"] == "SCMP_ACT_ALLOW"
        for name in rule["names"]:
            number, conditions = {"x86_64": NUMBERS[name]}, []
            for argument in rule.get("args", []):
                low = 2 * argument["index"]
                if argument["op"] == "SCMP_CMP_MASKED_EQ":
                    assert argument["valueTwo"] == 0 and argument["value"] < 1 << 32
                    made.append(Rule(number, profile["defaultErrnoRet"], (If(low, "any", (argument["value"],)),)))
                else:
                    assert argument["op"] == "SCMP_CMP_EQ"
                    halves = argument["value"] & 0xFFFFFFFF, argument["value"] >> 32
                    conditions += [If(low + half, "in", (value,)) for half, value in enumerate(halves)]
            made.append(Rule(number, 0, tuple(conditions)))
    return made


def compiled(profile: dict) -> bytes:
    return compile_rules(rules(profile), "x86_64", profile["defaultErrnoRet"])


def without(names: set[str]) -> dict:
    """The profile without some calls."""
    return PROFILE | {"syscalls": [rule | {"names": sorted({*rule["names"]} - names)} for rule in PROFILE["syscalls"]]}


def test_it_allows_what_workers_and_the_sandbox_use_and_nothing_that_opens_the_kernel():
    code = compiled(PROFILE)

    def judged(name: str, *arguments: int) -> int:
        return judge(code, "x86_64", NUMBERS[name], arguments)

    allowed = {"read", "openat", "execve", "futex", "epoll_wait", "unshare", "mount", "pivot_root", "mount_setattr", "seccomp"}
    refused = {"bpf", "io_uring_setup", "userfaultfd", "perf_event_open", "keyctl", "add_key", "setns", "fsopen", "clone3"}
    refused |= {"init_module", "kexec_load", "open_by_handle_at", "shmget", "syslog", "reboot", "swapon"}
    assert {name for name in allowed | refused if judged(name) == 0} == allowed
    assert [judged("socket", family) for family in (1, 2, 10, 16, 38, 40)] == [0, 0, 0, 0, errno.ENOSYS, errno.ENOSYS]
    assert [judged("clone", flags) for flags in (0x3D0F00, 17, 0x10000011)] == [0, 0, errno.ENOSYS]
    assert [judged("personality", value) for value in (0, 0xFFFFFFFF, 0x0400000)] == [0, 0, errno.ENOSYS]
    assert judged("socket", 16, 3, 12) == errno.ENOSYS


def test_the_executor_of_docker_compose_has_it():
    executor = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["executor"]
    assert executor["security_opt"] == ["no-new-privileges:true", "seccomp=deploy/seccomp.json"]


@needs_root
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the calls' numbers are those of x86_64")
def test_a_user_in_a_container_with_it_has_namespaces_for_programs(world):
    # Given a container's user under the profile, and one without what the profile adds for the sandbox
    if PYTHON is None:
        pytest.skip("no Python of the system")
    (world / "profile").write_bytes(compiled(PROFILE))
    (world / "plain").write_bytes(compiled(without({"unshare", "mount"})))
    plain = as_another(world, NOBODY, ["true"])
    if plain.get("walls") != "namespaces":
        pytest.skip(f"users may make no namespaces here: {plain['said']}")
    load = [*NOBODY, PYTHON, "-c", LOADER]
    code = "import os, threading; t = threading.Thread(target=print, args=(1,)); t.start(); t.join(); os.fork() or os._exit(0)"
    # When they run programs
    ran = as_another(world, [*load, str(world / "profile")], ["python3", "-c", code])
    refused = as_another(world, [*load, str(world / "plain")], ["true"])
    # Then the first has all walls, and the second none
    assert (ran.get("walls"), ran.get("exit"), ran.get("stdout")) == ("namespaces", 0, "1\n"), ran
    assert "no sandbox for programs on this machine" in refused["said"]
