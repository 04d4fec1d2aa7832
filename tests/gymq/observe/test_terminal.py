"""What is printed: no character acts on a terminal, and there is one way to print."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path

import pytest

from gymq.cli import table
from gymq.local.progress import RunProgress
from gymq.observe import logs
from gymq.observe.terminal import printable, say

ROOT = Path(__file__).parents[3]

#: Clears the screen, names the window, in C0 and in C1, turns the direction of writing; and half a pair of surrogates.
HOSTILE = "a\x1b[2Jb\x9b2Jc\x1b]0;title\x07d\x9d0;t\x9ce\u202ef\udc80g\rh"

SAFE = r"a\u001b[2Jb\u009b2Jc\u001b]0;title\u0007d\u009d0;t\u009ce\u202ef\udc80g\u000dh"


def test_no_character_acts_on_a_terminal_and_lines_and_letters_stay():
    assert printable(HOSTILE) == SAFE
    assert (
        printable("lines\n\tand\tletters: \u00e9 \u4f60 \u05d0 \U0001f600")
        == "lines\n\tand\tletters: \u00e9 \u4f60 \u05d0 \U0001f600"
    )


def test_json_means_the_same_after_it():
    value = {"key": HOSTILE}
    assert json.loads(printable(json.dumps(value, ensure_ascii=False))) == value


def test_what_is_said_shown_in_a_table_told_of_a_run_and_logged_passes_there(capsys: pytest.CaptureFixture[str]):
    say(HOSTILE)
    say(HOSTILE, err=True)
    rows = table.make_table(HOSTILE)
    rows.add_row(HOSTILE)
    table.show(rows, HOSTILE)
    RunProgress("r", 1, 0).say(HOSTILE)
    for form in (logs.TextLines(), logs.JsonLines()):
        line = form.format(logging.LogRecord("gymq", logging.INFO, "f", 1, "%s", (HOSTILE,), None))
        assert printable(line) == line
    printed = capsys.readouterr()
    assert printed.out.count(SAFE) == 4
    assert printed.err.count(SAFE) == 2
    assert [c for c in printed.out + printed.err if printable(c) != c] == []


def test_nothing_else_prints():
    found = []
    for path in (path for part in ("gymq", "workers", "sinks", "producers") for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert [place for place in found if not place.startswith("gymq/observe/terminal.py")] == []
