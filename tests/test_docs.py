"""The docs and the environments' READMEs: what they show is run, parsed or read here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from gymq import Environment
from gymq.cli.request import read_request
from gymq.prompt import PromptConfig
from gymq.rows import parse_row
from gymq.run import RunConfig
from tests.support import rollouts
from tests.support.rollouts import Workers

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks(page: str, kind: str) -> list[str]:
    """The fenced blocks of a kind in a page."""
    found = [body for language, body in BLOCK.findall((ROOT / page).read_text()) if language == kind]
    assert found, f"{page} has no {kind} block"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "environments").glob("*/README.md")))
def test_the_command_of_an_environments_readme_works(name: str, tmp_path: Path):
    (tmp_path / "environments").symlink_to(ROOT / "environments")
    (command,) = [line for body in blocks(f"environments/{name}/README.md", "") for line in body.splitlines() if line]
    argv = shlex.split(command)
    assert argv[0] == "gymq"
    done = subprocess.run(
        [sys.executable, "-m", "gymq.cli", *argv[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = (ROOT / "environments" / name / "data" / "train.jsonl").read_bytes().splitlines()
    assert len((tmp_path / argv[argv.index("--out") + 1]).read_bytes().splitlines()) == len(rows)


def test_the_environments_of_the_docs_are_environments():
    for body in blocks("docs/environments.md", "python"):
        # Tools read their types from their module.
        module = sys.modules["shown"] = types.ModuleType("shown")
        try:
            exec(compile(body, "docs/environments.md", "exec"), module.__dict__)
        finally:
            del sys.modules["shown"]
        made = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Environment)]
        (environment,) = [value for value in made if value is not Environment]
        assert environment.spec().tools


def test_the_rows_and_files_of_the_docs_are_accepted(tmp_path: Path):
    for body in blocks("docs/tasks.md", "json"):
        for line in body.splitlines():
            assert parse_row(line.encode(), where="docs/tasks.md", environment="counter", known={"counter"}).turns
    (prompt,) = blocks("docs/tasks.md", "yaml")
    path = tmp_path / "prompt.yaml"
    path.write_text(prompt)
    assert PromptConfig.load(path).user
    (run,) = blocks("docs/cli.md", "yaml")
    path = tmp_path / "run.yaml"
    path.write_text(run)
    request = read_request({"config": str(path)}, ("data", "model"))
    assert (request.samples, request.all_sampling["top_p"]) == (8, 0.95)


@pytest.mark.slow
def test_the_snippets_about_weights_work(settings, tmp_path: Path):
    environment = os.environ | {"GYMQ_REDIS_URL": settings.redis_url}

    def run(argv: list[str], text: str | None = None) -> str:
        done = subprocess.run(
            argv, input=text, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{argv}\n{done.stderr}"
        return done.stdout

    (commands,) = [body for body in blocks("docs/models.md", "") if "gymq weights" in body]
    said = [run([sys.executable, "-m", "gymq.cli", *shlex.split(line)[1:]]) for line in commands.splitlines()]
    assert "version 13 of" in said[2]
    assert str(tmp_path / "checkpoints/step13") in said[2]
    (script,) = [body for body in blocks("docs/models.md", "python") if "publish_weights" in body]
    run([sys.executable, "-"], script)
    assert "version 1 of" in run([sys.executable, "-m", "gymq.cli", "weights", "status"])


@pytest.mark.slow
def test_the_snippets_about_results_work(spawn, settings, tmp_path: Path):
    # Given a run of the name that they use, with a consumer for each
    workers = Workers(spawn, settings, tmp_path).start_all()
    config = RunConfig("try1", "weather", "tool", "scripted", samples=2)
    consumers = ["trainer", "later", "jsonl", "parquet"]
    rollouts.run_tasks(settings, config, rollouts.weather(10), consumers)
    environment = os.environ | {"GYMQ_REDIS_URL": settings.redis_url}

    def run(argv: list[str], text: str | None = None) -> str:
        done = subprocess.run(
            argv, input=text, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{argv}\n{done.stderr}"
        return done.stdout

    # When each is run as it stands
    for body in blocks("docs/results.md", "python"):
        if "train(" in body:
            said = run([sys.executable, "-"], "def train(rollouts, rewards): print(len(rollouts), rewards)\n" + body)
            assert said.splitlines() == ["2 [1.0, 1.0]"] * 10
        elif "async for" in body:
            later = body.replace('"trainer"', '"later"')
            run(
                [sys.executable, "-"],
                f"import asyncio\nasync def main():\n{textwrap.indent(later, '    ')}\nasyncio.run(main())",
            )
        elif "read_table" not in body:
            compile(body, "docs/results.md", "exec")
            run([sys.executable, "-"], body)
    for body in blocks("docs/results.md", ""):
        for line in body.splitlines():
            argv = shlex.split(line, comments=True)
            if argv[:3] != ["gymq", "consumer", "drop"]:  # last: what it drops is listed before
                run([sys.executable, "-m", "gymq.cli", *argv[1:]])
    # Then the files hold the run
    (table,) = [body for body in blocks("docs/results.md", "python") if "read_table" in body]
    assert run([sys.executable, "-"], table + "\nprint(table.num_rows)").strip() == "20"
    assert len((tmp_path / "rollouts.jsonl").read_bytes().splitlines()) == 20
    run([sys.executable, "-m", "gymq.cli", "consumer", "drop", "try1", "trainer"])
    workers.stop()
