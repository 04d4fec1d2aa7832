"""The limit of open files: a process raises its own, and takes no more calls than that allows."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

#: Prints how many calls there is room for, and the limit then, of a process with the limits of its arguments.
PROGRAM = """
import logging, resource, sys
from gymq.process.open_files import room_for
logging.basicConfig(stream=sys.stdout, format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
print(room_for(int(sys.argv[3])), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def room(soft: int, hard: int, calls: int) -> list[str]:
    argv = [sys.executable, "-c", PROGRAM, *map(str, (soft, hard, calls))]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_a_limit_that_suffices_stays():
    assert room(1024, 1024, 256) == ["256 1024"]


def test_a_limit_that_is_too_low_is_raised_to_what_is_needed():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 3000 and hard != resource.RLIM_INFINITY:
        pytest.skip("this machine's hard limit is low")
    assert room(256, 3000, 2000) == ["2000 2128"]


def test_a_process_that_may_open_less_takes_less_and_says_so():
    said, done = room(256, 500, 20000)
    assert done == "372 500"
    assert said.startswith("takes 372 calls at once, not 20000: this process may have 500 files open; raise its limit")
