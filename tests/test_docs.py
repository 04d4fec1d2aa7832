"""The docs and the environments' READMEs: what they show is run, parsed or read here."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import textwrap
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
from gymq_workers.inline.pytest_plugin import play

from gymq import Environment
from gymq.ingest.prompt_template import PromptConfig
from gymq.ingest.row_parser import parse_row
from gymq.local.read_options import read_run_options
from gymq.store.runs import RunConfig
from gymq.wire.pricing import Prices
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


def test_the_environments_of_the_docs_are_environments(monkeypatch):
    for body in blocks("docs/environments.md", "python"):
        if "def test_" in body:
            space: dict = {}
            exec(body, space)
            space["test_the_die_is_repeated"](play)
            continue
        # Tools read their types from their module.
        module = sys.modules["shown"] = types.ModuleType("shown")
        try:
            exec(compile(body, "docs/environments.md", "exec"), module.__dict__)
        finally:
            del sys.modules["shown"]
        made = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Environment)]
        (environment,) = [value for value in made if value is not Environment]
        assert environment.spec().tools
        monkeypatch.setitem(sys.modules, environment.name, module)  # the page's tests import it


def test_the_rows_and_files_of_the_docs_are_accepted(tmp_path: Path):
    for body in blocks("docs/tasks.md", "json"):
        for line in body.splitlines():
            assert parse_row(line.encode(), where="docs/tasks.md", environment="counter", known={"counter"}).encoded
    (prompt,) = blocks("docs/tasks.md", "yaml")
    path = tmp_path / "prompt.yaml"
    path.write_text(prompt)
    assert PromptConfig.load(path).user
    (run,) = blocks("docs/cli.md", "yaml")
    path = tmp_path / "run.yaml"
    path.write_text(run)
    request = read_run_options({"config": str(path)}, ("data", "model"))
    assert (request.samples, request.all_sampling["top_p"]) == (8, 0.95)


@pytest.mark.slow
def test_the_rows_prices_and_commands_of_the_page_about_models_are_accepted(tmp_path: Path):
    for body in blocks("docs/models.md", "json"):
        for line in body.splitlines():
            task = parse_row(line.encode(), where="docs/models.md", environment="counter", known={"counter"})
            assert b"json_schema" in task.sampling
    (table,) = blocks("docs/models.md", "yaml")
    path = tmp_path / "prices.yaml"
    path.write_text(table)
    assert Prices.read(str(path)).price("azure:small-1") is not None
    commands = [line for body in blocks("docs/models.md", "") for line in body.replace("\\\n", "").splitlines()]
    commands = [shlex.split(line) for line in commands if line.startswith("gymq")]
    assert len(commands) > 2
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Which?", "options": ["a", "b"], "answer": "A"}\n')
    for argv in commands:
        # Parsed by the real command line, but not begun: nobody listens on that server.
        env = {**os.environ, "OPENAI_API_KEY": "k", "AZURE_OPENAI_API_KEY": "k", "OPENAI_API_VERSION": "2024-10-21"}
        env |= {"AZURE_OPENAI_ENDPOINT": "https://name.openai.azure.com", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
        done = subprocess.run(
            [sys.executable, "-m", "gymq.cli", *argv[1:], "--redis", "redis://127.0.0.1:1/0"],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        lacking = "generate" in argv and not find_spec("transformers")
        # With --gpus the workers are children, which are started once the server is there.
        hosts = "worker" in argv and "vllm:Qwen/Qwen3-8B" in argv and "--gpus" not in argv
        lacking = lacking or (hosts and not find_spec("vllm"))
        assert done.returncode == (2 if lacking else 4), (argv, done.stderr)


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


def test_the_branches_of_rollouts_md_are_what_a_trainer_gets(tmp_path, monkeypatch):
    # Given a file with a rollout of one call
    def packed(*ids: int) -> str:
        return base64.b64encode(struct.pack(f"<{len(ids)}i", *ids)).decode()

    tokens = {"prompt_start": 0, "prompt": packed(1, 2), "output": packed(3), "logprobs": packed(0), "versions": [[0, 7]]}
    (tmp_path / "out").mkdir()
    record = {"calls": [{"call": "1.0", "kind": "generate", "message": 1, "tokens": tokens}]}
    (tmp_path / "out" / "try1.jsonl").write_text(json.dumps(record) + "\n")
    monkeypatch.chdir(tmp_path)
    # When the page's code is run
    got: list[list[list[float]]] = []
    (body,) = blocks("docs/rollouts.md", "python")
    exec(compile(body, "docs/rollouts.md", "exec"), {"train": lambda *arrays: got.append([list(each) for each in arrays])})
    assert got == [[[1, 2, 3], [0, 0, 1], [0, 0, 0], [-1, -1, 7]]]
