"""What a process imports depends on what is installed, never on the folder that it was started in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.cli import Cli

#: An environment with an isolated tool and a scripted player, so that all four roles import something.
DICE = """\
from gymq import Environment, Function, Message, ToolCall, tool

class Dice(Environment):
    name = "dice"

    @tool(isolated=True)
    def roll(self) -> int:
        "Roll the dice."
        return 4

    def verify(self, messages) -> float:
        return float(messages.last.text == "4")

    def policy(self, messages):
        if messages.last.role == "tool":
            return Message(role="assistant", content=messages.last.text)
        return Message(role="assistant", tool_calls=[ToolCall(id="c", function=Function(name="roll", arguments="{}"))])
"""

#: Modules that gymq and its libraries import, as a user may have named scripts of his own.
TRAPS = ("redis", "uuid", "celery", "click", "queue", "flowerconfig", "kombu", "workers", "types", "random")


@pytest.fixture
def cli(spawn, tmp_path: Path) -> Cli:
    return Cli(spawn, tmp_path / "here")


def install(folder: Path, **modules: str) -> str:
    """Install `dice` as `pip install -e` does; returns the PYTHONPATH that finds it.

    Args:
        folder: where its modules stand.
        modules: them, by name.
    """
    info = folder.parent / "site" / "dice-1.dist-info"
    info.mkdir(parents=True)
    folder.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dice\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gymq.environments]\ndice = dice:Dice\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return os.pathsep.join([str(info.parent), str(folder)])


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["dice", "dice/dice.py:Dice"])
def test_a_run_is_the_same_in_a_folder_full_of_files_named_like_modules(cli, environment):
    # Given a folder that holds the distribution `dice`, a clone named gymq, and scripts named like modules
    path = install(cli.folder / "dice", dice=DICE)
    if environment == "dice":
        cli.env["PYTHONPATH"] = path
    (cli.folder / "gymq").mkdir()
    for name in TRAPS:
        (cli.folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working directory was imported')")
    (cli.folder / "rows.jsonl").write_text(json.dumps({"prompt": "roll"}) + "\n")

    # When a run is started there, then no process imports anything of it
    cli("run", environment, "--data", "rows.jsonl", "--samples", 4, "--model", "scripted", "--out", "out.jsonl")
    assert [row["reward"] for row in cli.rows()] == [1.0] * 4


@pytest.mark.slow
def test_an_environment_that_workers_cannot_import_ends_the_run_before_a_rollout_is_spent(cli):
    # Given an environment that fails in workers only, behind an import of its own
    helper = "import sys\nif 'worker' in sys.argv:\n    raise OSError('no dice on this machine')\n"
    cli.env["PYTHONPATH"] = install(cli.folder / "dice", dice=f"import cup\n{DICE}", cup="import hand\n", hand=helper)
    (cli.folder / "rows.jsonl").write_text(json.dumps({"prompt": "roll"}) + "\n")

    # When a run is started, then it ends with one line that names the files, and no rollout has begun
    done = cli("run", "dice", "--data", "rows.jsonl", "--model", "scripted", "--out", "out.jsonl", code=2)
    files = ", imported by ".join(f"{cli.folder}/dice/{place}" for place in ("hand.py:3", "cup.py:1", "dice.py:1"))
    last = done.stderr.splitlines()[-1]
    assert " cannot go on: " in last
    assert f"environment 'dice' (dice:Dice) cannot be imported: OSError: no dice on this machine ({files})" in last
    assert cli.rows() == []
