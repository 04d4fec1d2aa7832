"""A notebook, executed by Jupyter: classes in its cells, a running loop, progress, and errors of a person."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.notebook, pytest.mark.heavy]

CELLS = [
    '''
from gymq import Environment, Function, Message, ToolCall, tool

class Dice(Environment):
    name = "dice"

    @tool()
    def roll(self, sides: int) -> str:
        """Roll a die."""
        return f"It shows {sides}."

    def verify(self, messages, task) -> float:
        return float(task["sides"] in messages.last.text)

    def policy(self, messages, task) -> Message:
        if messages.last.role == "tool":
            return Message(role="assistant", content=messages.last.text)
        return Message(role="assistant", tool_calls=[ToolCall("a", Function("roll", '{"sides": %s}' % task["sides"]))])

tasks = [{"prompt": "Roll.", "sides": str(n)} for n in range(4)]
''',
    """
import gymq
results = gymq.run(Dice, tasks, model="scripted", samples=2)
print("mean", results.mean_reward, results[0].messages[-1]["content"], len(results.to_pandas()))
""",
    """
# The class is edited, and the cell run again
class Dice(Dice):
    def verify(self) -> float:
        return 0.25

again = await gymq.run_async(Dice, tasks, model="scripted")
print("again", again.mean_reward, [r.row async for r in again])
""",
    """
try:
    gymq.run(Dice, [{"no": "prompt"}], model="scripted")
except gymq.GymqError as error:
    print("refused:", error)
""",
    """
class Wild(Dice):
    name = "wild"

    @tool(isolated=True)
    def crash(self) -> str:
        '''Crash.'''

try:
    gymq.run(Wild, tasks, model="scripted")
except gymq.GymqError as error:
    print("refused:", error)
""",
]


def notebook(cells: list[str]) -> dict[str, Any]:
    """The file of a notebook."""
    made = [
        {"cell_type": "code", "execution_count": None, "id": f"c{i}", "metadata": {}, "outputs": [], "source": source.strip()}
        for i, source in enumerate(cells)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def test_a_notebook_rolls_out_a_class_of_a_cell(tmp_path: Path):
    pytest.importorskip("nbconvert", reason="`make test-notebook` installs it")
    (tmp_path / "dice.ipynb").write_text(json.dumps(notebook(CELLS)))
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace", "dice.ipynb"],
        cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = [cell["outputs"] for cell in json.loads((tmp_path / "dice.ipynb").read_text())["cells"]]
    said = ["".join("".join(one.get("text", "")) for one in cell if one.get("name") == "stdout") for cell in outputs]
    assert said[1].strip() == "mean 1.0 It shows 0. 8"
    assert said[2].strip() == "again 0.25 [0, 1, 2, 3]"
    assert said[3].strip() == "refused: tasks: has no good rows; nothing to roll out"
    assert said[4].strip().endswith("give 'FILE.py:Wild' instead of the class")
    # The progress is one line, which was written anew
    for cell, count in zip(outputs[1:3], ("8/8", "4/4"), strict=True):
        shown = ["".join(one["data"]["text/plain"]) for one in cell if one["output_type"] == "display_data"]
        assert len(shown) == 1
        assert f"{count} rollouts" in shown[0]
    assert [path.name for path in tmp_path.iterdir()] == ["dice.ipynb"]
