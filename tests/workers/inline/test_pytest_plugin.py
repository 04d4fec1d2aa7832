"""The fixture `gymq_play`, in somebody else's project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = "gymq_workers.inline.pytest_plugin"

TEST = """
import asyncio
from gymq import Environment

class Echo(Environment):
    name = "echo"

    def verify(self, task, messages) -> float:
        return float(messages.last.text == task["word"])

def test_echo(gymq_play):
    assert gymq_play(Echo, {"prompt": "Say hi.", "word": "hi"}, ["hi"]).reward == 1.0

def test_in_a_loop(gymq_play):
    async def main():
        assert gymq_play(Echo, {"prompt": "Say hi.", "word": "hi"}, ["ho"]).reward == 0.0
    asyncio.run(main())
"""


@pytest.mark.slow
def test_a_project_tests_its_environment_with_the_fixture(tmp_path: Path):
    (tmp_path / "test_echo.py").write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_plugin_imports_nothing_of_gymq_before_a_test_asks_for_it():
    code = f"import pytest, sys, {PLUGIN}; print([n for n in sys.modules if n.startswith('gymq')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['gymq_workers', 'gymq_workers.inline', 'gymq_workers.inline.pytest_plugin']"
