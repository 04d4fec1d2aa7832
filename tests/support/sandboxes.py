"""Sandboxes that other processes make, under other identities."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import gymq

#: A system's Python, which other users may run; ours may be in a home.
PYTHON = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(path)), None)

#: In a user namespace that allows no further ones.
WITHOUT = 'echo 0 > /proc/sys/user/max_user_namespaces; echo 0 > /proc/sys/user/max_pid_namespaces; exec "$@"'

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


def walled() -> bool:
    """Whether this machine has namespaces for us; our own code is not asked: if it were broken, its tests would be skipped."""
    if shutil.which("unshare") is None:
        return False
    kinds = ["-m", "-n", "-p", "-i", "-u", "-f", *(["-U"] if os.geteuid() != 0 else [])]
    return subprocess.run(["unshare", *kinds, "true"], capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not walled(), reason="this machine has no namespaces for us")
needs_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")


@pytest.fixture(scope="module")
def world() -> Iterator[Path]:
    """A folder that everybody may read, with a copy of gymq, for processes that are not we."""
    folder = Path(tempfile.mkdtemp(prefix="gymq-test-"))
    try:
        for module in (gymq, msgspec):
            shutil.copytree(Path(module.__file__).parent, folder / Path(module.__file__).parent.name)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        yield folder
    finally:
        shutil.rmtree(folder)


def as_another(world: Path, wrapper: list[str], argv: list[str], **given) -> dict:
    """Run a program in a sandbox that another process makes, under another identity; what it says of it."""
    if PYTHON is None:
        pytest.skip("no Python of the system")
    there = subprocess.run(
        [PYTHON, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=True
    )
    if there.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip("the system's Python is of another version than ours: it cannot load our msgspec")
    code = "import sys, msgspec; from gymq import run_program; c = msgspec.json.decode(sys.stdin.read());"
    code += "sys.stdout.write(msgspec.json.encode(run_program(c[0], **c[1])).decode())"
    env = {"PYTHONPATH": str(world), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **given.pop("env", {})}
    text = msgspec.json.encode([argv, given]).decode()
    done = subprocess.run(
        [*wrapper, PYTHON, "-c", code], input=text, capture_output=True, text=True, cwd=world, env=env, timeout=60, check=False
    )
    return msgspec.json.decode(done.stdout) | {"said": done.stderr} if done.returncode == 0 else {"said": done.stderr}
