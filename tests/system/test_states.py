"""The states in docs/architecture.md are those of the code: of runs in the scripts, of rollouts in the agent's machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import gymq
import workers.agent
from gymq.store.keys import Keys
from workers.agent.state import State

DOCS = Path(__file__).parents[2] / "docs" / "architecture.md"
STATES = DOCS.read_text().split("## States")[1].split("## The rules")[0]
SOURCE = Path(gymq.__file__).parent
AGENT = Path(workers.agent.__file__).parent


def table(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    text = re.split(r"\n\|[ |-]+\|\n", STATES.split(heading)[1])[1]
    rows = text.split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_states_of_a_run_are_those_that_are_written():
    written = set(
        re.findall(r"'HSET', [^)]*'state', '(\w+)'", "".join(p.read_text() for p in (SOURCE / "store" / "lua").glob("*.lua")))
    )
    written |= set(re.findall(r'"state", "(\w+)"', (SOURCE / "store" / "runs.py").read_text()))
    listed = {word for row in table("A **run**") for cell in (row[0], row[2]) for word in cell.split(";")[0].split(", ")}
    assert listed - {"\N{EN DASH}", "any"} == written == {"open", "closed", "cancelled", "done"}


def test_the_phases_of_a_rollout_are_those_that_the_machine_sets():
    used = {State().phase}
    for path in AGENT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            # `send(kind, phase)` and `hook(phase)` of the step context set it.
            at = {"send": 1, "hook": 0}.get(node.func.attr)
            if at is not None and len(node.args) > at and isinstance(phase := node.args[at], ast.Constant):
                used.add(phase.value)
    listed = {row[0].partition(",")[0] for row in table("And from then on")}
    told = re.search(r"phase: (.*?): what", State.__doc__ or "")
    assert listed == used
    assert told is not None and set(re.findall(r"`(\w+)`", told[1])) == used


def test_the_streams_in_which_mail_may_lie_stand_in_the_table_of_calls():
    keys = Keys()
    first = keys.mailbox("x")
    streams = {made.removeprefix(first + ":") for kind in vars(Keys).values() if callable(kind) and kind.__name__ != "__init__"
               if (made := kind(keys, "x")).startswith(first + ":")}  # fmt: skip
    text = "\n".join(cell for row in table("A **call**") for cell in row)
    assert streams == {"retry", "alone", "newer"}
    assert all(f"stream `{name}`" in text or f"{name} stream" in text for name in streams)


def test_each_script_that_changes_a_state_is_named():
    scripts = {path.stem for path in (SOURCE / "store" / "lua").glob("*.lua")}
    named = set(re.findall(r"`(\w+)\.lua`", STATES))
    assert named <= scripts
    assert {"enqueue", "admit", "reopen_run", "ack", "hand_back", "renew_worker", "find_orphans"} <= named
