"""The second round: escapes from public write-ups, each run within each kind of walls."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gymq.process import sandbox
from gymq.process.sandbox import run_program
from tests.support.sandboxes import NOBODY, PYTHON, as_another, needs_namespaces, needs_root

ESCAPES = Path(__file__).with_name("escapes.py")
PAGE = Path(__file__).parents[3] / "docs" / "sandbox.md"

GIVEN = {"files": {"e.py": ESCAPES.read_text()}, "seconds": 60}

#: What a user of its own can do without namespaces: see that a device, a socket or a folder is there, and use the network.
OPEN_TO_A_USER = {"type_into_the_terminal", "overflow_a_keyring", "gain_rights_by_a_file", "climb_out_of_the_root"} | {
    "call_a_daemon",
    "ask_the_cloud",
}


@needs_namespaces
def test_no_escape_succeeds():
    ran = run_program(["python", "e.py", "6379"], **GIVEN)
    assert (ran.walls, ran.stderr, json.loads(ran.stdout)) == ("namespaces", "", {})


@needs_root
def test_no_escape_of_an_unprivileged_user_succeeds(world):
    ran = as_another(world, NOBODY, ["python3", "e.py", "6379"], **GIVEN)
    if "walls" not in ran:
        pytest.skip(f"users may make no namespaces here: {ran['said']}")
    assert (ran["walls"], ran["stderr"], json.loads(ran["stdout"])) == ("namespaces", "", {})


@needs_root
def test_without_namespaces_only_what_is_open_to_every_user_is_reached(monkeypatch):
    if PYTHON is None:
        pytest.skip("no Python of the system")
    monkeypatch.setattr(sandbox, "_chosen", ["uid"])
    ran = run_program([PYTHON, "e.py", "6379"], **GIVEN)
    assert (ran.walls, ran.stderr) == ("uid", "")
    assert set(json.loads(ran.stdout)) <= OPEN_TO_A_USER


def test_the_page_lists_each_escape():
    tried = re.findall(r"^@escape\ndef (\w+)", ESCAPES.read_text(), re.MULTILINE)
    assert len(tried) >= 20
    assert re.findall(r"^\| `(\w+_\w+)` \|", PAGE.read_text(), re.MULTILINE) == tried
