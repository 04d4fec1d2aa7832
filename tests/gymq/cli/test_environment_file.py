"""`gymq run FILE.py:CLASS`: an environment that is not installed, in every process that needs it."""

from __future__ import annotations

import json

import pytest

DICE = '''
import neighbour
import os
from gymq import Environment, Function, Message, ToolCall, tool

class Dice(Environment):
    name = "dice"

    @tool()
    def roll(self, sides: int) -> str:
        """Roll a die."""
        return f"{sides} {os.getpid()}"

    @tool(isolated=True)
    def throw(self) -> str:
        """Throw it."""
        return f"thrown {os.getpid()}"

    def verify(self, messages, task) -> float:
        return float(task["sides"] in messages[2].text)

    def policy(self, messages, task) -> Message:
        if messages.last.role == "tool":
            return Message(role="assistant", content="done")
        calls = [Function("roll", '{"sides": %s}' % task["sides"]), Function("throw", "{}")]
        return Message(role="assistant", tool_calls=[ToolCall(f"call_{i}", call) for i, call in enumerate(calls)])
'''


@pytest.mark.slow
def test_a_class_in_a_file_is_found_by_all_workers_and_its_neighbours_shadow_nothing(cli):
    # Given a file that is not installed, beside one that it imports and one named like a package of ours
    (cli.folder / "dice.py").write_text(DICE)
    (cli.folder / "neighbour.py").write_text("")
    (cli.folder / "redis.py").write_text("raise SystemExit('the wrong redis')")
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": "Roll.", "sides": str(n)}) + "\n" for n in (6, 8)))
    # When it is rolled out with its own policy, a tool in a resource worker, and one in an executor
    cli("run", "./dice.py:Dice", "--data", "rows.jsonl", "--model", "scripted", "--out", "out.jsonl")
    # Then each found it
    rows = cli.rows()
    assert [(row["reward"], row["environment"]) for row in rows] == [(1.0, "dice")] * 2
    for row in rows:
        rolled, thrown = [message["content"].split() for message in row["messages"] if message["role"] == "tool"]
        assert thrown[0] == "thrown"
        assert thrown[1] != rolled[1]
