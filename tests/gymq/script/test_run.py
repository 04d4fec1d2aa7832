"""`gymq.run` as a script or a notebook calls it: real processes, and a class that only the program has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gymq.errors import DataError, UsageError
from gymq.local.run_options import OPTIONS
from gymq.script.run import run
from gymq.script.run_keywords import RunKeywords
from tests.support.waiting import wait_until

#: An environment as a person writes it, in a file or a cell.
DICE = '''
import os
from gymq import Environment, Function, Message, ToolCall, tool

class Dice(Environment):
    name = "dice"

    @tool()
    def roll(self, sides: int) -> str:
        """Roll a die."""
        return f"{sides} {os.getpid()}"

    def verify(self, messages, task) -> float:
        return float(messages.last.text.startswith(task["sides"]))

    def policy(self, messages, task) -> Message:
        if messages.last.role == "tool":
            return Message(role="assistant", content=messages.last.text)
        return Message(role="assistant", tool_calls=[ToolCall("call_0", Function("roll", '{"sides": %s}' % task["sides"]))])
'''
TASKS = 'tasks = [{"prompt": "Roll.", "sides": str(n)} for n in range(3)]\n'


class Script:
    """Runs programs in a folder of their own.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, text: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        (self.folder / "script.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "script.py"], cwd=self.folder, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def test_the_keywords_are_the_options_of_the_command_that_a_call_can_take():
    taken = {name for name, option in OPTIONS.items() if option.to in ("task", "model", "judge", "run")}
    assert set(RunKeywords.__annotations__) == taken - {"data", "model", "out"}


@pytest.mark.slow
def test_a_class_of_a_script_is_rolled_out_without_a_guard_and_in_a_running_loop(script: Script):
    # Given a program of a few lines, whose class stands in no importable module
    calls = """
import asyncio, gymq
results = gymq.run(Dice, tasks, model="scripted", samples=2)
print(len(results), results.mean_reward, results[3].row, results[3].sample)
print({m["content"].split()[1] for r in results for m in r.messages if m["role"] == "tool"} == {str(os.getpid())})
print(sorted(results.to_pandas()["task.sides"]), len(results.groups), "GYMQ_REDIS_URL" in os.environ)

async def main():
    ticks = 0
    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)
    ticking = asyncio.create_task(tick())
    kept = await gymq.run_async(Dice, tasks, model="scripted", samples=2, out="out.jsonl")
    print([r.id.partition(".")[2] async for r in kept], ticks > 10)
    ticking.cancel()
    again = gymq.run(Dice, tasks, model="scripted", samples=2, out="out.jsonl")
    print(again)
asyncio.run(main())
"""
    done = script(DICE + TASKS + calls)
    # Then it ends once, with the class served in the program itself, and a complete file is not done again
    assert done.stdout.splitlines() == [
        "6 1.0 1 1",
        "True",
        "['0', '0', '1', '1', '2', '2'] 3 False",
        "['0.0', '0.1', '1.0', '1.1', '2.0', '2.1'] True",
        "<RunResult: 6 of 6 rollouts, mean reward 1.000, 6 completed>",
    ]
    assert "complete: all 6 rollouts are there" in done.stderr
    assert sorted(path.name for path in script.folder.iterdir()) == ["out.jsonl", "out.jsonl.gymq", "script.py"]
    assert [path.name for path in (script.folder / "out.jsonl.gymq").iterdir()] == ["run.json"]


@pytest.mark.heavy
def test_a_call_that_kills_the_program_ends_alone_after_five_deaths(script: Script):
    deadly = DICE.replace("        return f", "        if sides == 2:\n            os._exit(9)\n        return f")
    call = 'import gymq\nresults = gymq.run(Dice, tasks, model="scripted", out="out.jsonl")\n'
    text = deadly + TASKS + call + 'print([r.data["error"] and r.data["error"]["kind"] for r in results])\n'
    for _ in range(5):
        script(text, code=9)
    assert script(text).stdout.strip() == "[None, None, 'poison']"


@pytest.mark.heavy
def test_ctrl_c_keeps_what_is_there_and_the_same_call_continues(script: Script, spawn):
    # Given a run whose rollouts take their time
    text = DICE.replace("return f", "import time; time.sleep(0.5); return f") + TASKS.replace("range(3)", "range(40)")
    call = 'import gymq\nresults = gymq.run(Dice, tasks, model="scripted", concurrency=4, out="out.jsonl")\n'
    (script.folder / "script.py").write_text(text + call + "print(results.stopped, len(results))\n")
    out = script.folder / "out.jsonl"
    process = spawn([sys.executable, "script.py"], cwd=script.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: out.exists() and out.stat().st_size > 0, 30, "the first rollout")
    # When it is interrupted
    os.kill(process.pid, signal.SIGINT)
    said, complaints = process.communicate(timeout=60)
    # Then the call returns what there is
    kept = len(out.read_bytes().splitlines())
    assert said.decode().split() == ["True", str(kept)], complaints.decode()
    assert 0 < kept < 40
    assert f"{kept} of 40 rollouts are in out.jsonl; the same command continues" in complaints.decode()
    # And the same call does the rest
    fast = script(DICE + TASKS.replace("range(3)", "range(40)") + call + "print(results.stopped, len(results))\n")
    assert fast.stdout.split() == ["False", "40"]


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ("gone.py:Dice", "gone.py: no such file"),
        ("dice.py:Nice", "it has no environment 'Nice'; write dice.py:CLASS, with one of its environments: Dice"),
        ("dice.py", "the class is missing; write dice.py:CLASS"),
        ("broken.py:Dice", "broken.py: cannot be loaded: ZeroDivisionError: division by zero ("),
        ("leaves.py:Dice", "leaves.py: cannot be loaded: SystemExit: bye ("),
        ("nameless.py:Dice", "Dice has no name; write name = 'dice' in the class"),
        ("calls.py:Dice", "put the call below: if __name__"),
        ("nosuch", "unknown environment 'nosuch'"),
        (dict, "the environment is <class 'dict'>; give a class"),
    ],
)
def test_what_is_no_environment_is_refused_in_one_line(tmp_path: Path, monkeypatch, environment, problem: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dice.py").write_text(DICE)
    (tmp_path / "broken.py").write_text("x = 1\nx / 0\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit('bye')\n")
    (tmp_path / "nameless.py").write_text(DICE.replace('name = "dice"', ""))
    (tmp_path / "calls.py").write_text(DICE + 'import gymq\ngymq.run(Dice, [{"prompt": "Roll."}], model="scripted")\n')
    with pytest.raises(UsageError) as error:
        run(environment, [{"prompt": "Roll."}], model="scripted")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"tasks": []}, "tasks: has no good rows"),
        ({"tasks": [{"no": "prompt"}]}, "tasks: has no good rows"),
        ({"tasks": ["text"]}, "tasks:1: is a str; give dicts"),
        ({"tasks": [{"prompt": "go"}, {"prompt": object()}]}, "tasks:2: cannot be written as JSON"),
        ({"tasks": "gone.jsonl"}, "gone.jsonl: no such file"),
        ({"samples": 0}, "gymq.run: samples: "),
        ({"sample": 4}, "gymq.run: unknown option 'sample'"),
        ({"model": "nosuch:x"}, "unknown backend 'nosuch'"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_started(arguments: dict, problem: str, capsys):
    given = {"tasks": [{"prompt": "go"}], "model": "scripted", **arguments}
    tasks, model = given.pop("tasks"), given.pop("model")
    with pytest.raises((UsageError, DataError)) as error:
        run("counter", tasks, model=model, **given)
    assert problem in str(error.value)


def test_isolated_calls_of_a_class_need_a_file(tmp_path: Path, monkeypatch):
    space: dict = {"__name__": "notebook_cell"}
    monkeypatch.setitem(sys.modules, "notebook_cell", type(sys)("notebook_cell"))
    exec(DICE.replace("@tool()", "@tool(isolated=True)"), space)
    with pytest.raises(UsageError, match=r"Dice has isolated calls, .*: give 'FILE\.py:Dice' instead of the class"):
        run(space["Dice"], [{"prompt": "Roll.", "sides": "6"}], model="scripted")


def test_the_class_of_an_installed_environment_is_its_name(monkeypatch):
    from gymq_environments.weather.environment import Weather

    from gymq import plugins

    assert plugins.add_environment(Weather) == "weather"
    assert plugins.environment_source("weather") == "weather"


def test_a_bad_row_is_told_by_its_place_among_the_tasks(capsys):
    with pytest.raises(DataError):
        run("counter", [{"prompt": 5}], model="scripted")
    assert capsys.readouterr().err.startswith("tasks:1: ")
