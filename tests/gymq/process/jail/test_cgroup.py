"""Bounds on the memory of all processes of a program."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gymq.process.jail import cgroup
from gymq.process.sandbox import run_program
from tests.support.sandboxes import needs_namespaces

#: Takes memory that no process's limit counts, 256 MiB; argv: how.
HOARD = """
import mmap, os, sys
kept = []
if sys.argv[1] == "shared":
    kept.append(mmap.mmap(-1, 256 << 20))
    for at in range(0, 256 << 20, 4096):
        kept[0][at] = 1
else:
    for number in range(64):
        kept.append(os.memfd_create("x"))
        os.write(kept[-1], bytes(4 << 20))
print("had it")
"""


def possible() -> bool:
    """Whether this process may make groups that bound memory."""
    group = cgroup.make(1 << 30, 64)
    if group is not None:
        group.remove()
    return group is not None


@needs_namespaces
@pytest.mark.skipif(not possible(), reason="this process may make no control groups")
@pytest.mark.parametrize("how", ["shared", "nameless"])
def test_memory_that_belongs_to_no_process_is_bounded(how):
    ran = run_program(["python", "-c", HOARD, how], memory=64 << 20, disk=8 << 20, seconds=30)
    # The kernel ends the program, or pid 1 and with it all.
    assert (ran.exit, ran.stdout) == (-9, ""), ran


@pytest.mark.skipif(not possible(), reason="this process may make no control groups")
def test_no_group_outlives_its_program(tmp_path):
    names = {path for parent, _ in cgroup._parents() for path in Path(parent).glob(f"{cgroup.PREFIX}*")}
    run_program(["true"])
    group = cgroup.make(1 << 30, 64)
    # Given a group whose warden was killed
    dead = Path(cgroup._parents()[0][0]) / f"{cgroup.PREFIX}{2**22 + 1}"
    dead.mkdir()
    group.remove()
    # When the next one is made
    run_program(["true"])
    # Then all are gone
    assert not dead.exists()
    mine = {path for parent, _ in cgroup._parents() for path in Path(parent).glob(f"{cgroup.PREFIX}{os.getpid()}")}
    assert mine - names == set()


def test_the_second_version_bounds_memory_swap_and_tasks(tmp_path, monkeypatch):
    # Given a folder with the files of a group that delegates memory
    written = {}
    monkeypatch.setattr(cgroup.Cgroup, "_write", lambda self, name, value: written.update({name: value}))
    monkeypatch.setattr(cgroup.Cgroup, "_open", lambda self, name: os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT))
    group = cgroup.Cgroup(str(tmp_path), 2, 1000, 10)
    assert written == {"memory.max": 1000, "memory.swap.max": 0, "memory.oom.group": 1, "pids.max": 10}
    group.enter()
    group.add(77)
    assert (tmp_path / "cgroup.procs").read_text() == "77"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f"{cgroup.PREFIX}{os.getpid()}"]
    group.remove()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


#: What a system says of its groups, by the places where a program's group could lie.
MACHINES = {
    "of the second version, in a service": (
        "0::/system.slice/gymq.service\n",
        "30 23 0:26 / {0} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        [("system.slice", 2)],
    ),
    "of the second version, in a container of its own": ("0::/\n", "30 23 0:26 / {0} rw - cgroup2 cgroup rw\n", []),
    "of the first version": (
        "4:memory:/docker/1\n0::/docker/1\n",
        "30 23 0:26 /docker/1 {0} rw - cgroup cgroup rw,memory\n",
        [("", 1)],
    ),
    "without memory": ("4:cpu:/\n", "30 23 0:26 / {0} rw - cgroup cgroup rw,cpu\n", []),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_group_lies_where_its_parent_bounds_memory(machine, tmp_path, monkeypatch):
    groups, mounts, places = MACHINES[machine]
    service = tmp_path / "system.slice" / "gymq.service"
    service.mkdir(parents=True)
    (tmp_path / "cgroup.subtree_control").write_text("\n")
    (tmp_path / "system.slice" / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (service / "cgroup.subtree_control").write_text("\n")
    (tmp_path / "mountinfo").write_text(mounts.format(tmp_path))
    (tmp_path / "cgroup").write_text(groups)
    real = open
    known = {"/proc/self/cgroup": tmp_path / "cgroup", "/proc/self/mountinfo": tmp_path / "mountinfo"}
    monkeypatch.setattr("builtins.open", lambda path, *more, **given: real(known.get(str(path), path), *more, **given))
    assert cgroup._parents() == [(str(tmp_path / place) if place else str(tmp_path), version) for place, version in places]
