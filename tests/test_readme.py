"""README.md word by word: every file it tells to write is written, every command is run, in order, in a copy of the project.

A fenced block is `sh` (run), `sh background` (started, and waited for as its readers would), `sh skip: reason` (not run), or
`<language> <path>` (a file to write).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)

#: What a person waits to see before going on after a background command.
SIGNS = {
    "gymq server": "out/server/server.url",
}


def blocks() -> list[tuple[str, str, str]]:
    return [(kind, rest.strip(), body) for kind, rest, body in BLOCK.findall((ROOT / "README.md").read_text())]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, with a virtual environment that has all that ours has, and where `pip install` changes only it."""
    folder = tmp_path / "gymq"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    environment = folder / ".venv"
    venv.create(environment, with_pip=False, symlinks=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "parent.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name, module in (("gymq", "gymq.cli"), ("pip", "pip")):
        script = environment / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{environment}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    (environment / "user").touch()  # what `make demo` would make first; the suite does not install gymq again
    return folder


@pytest.mark.slow
def test_every_command_of_the_readme_works(project: Path, spawn, tmp_path: Path):
    shell = f'set -e; cd "{project}"; '
    log = (tmp_path / "background.log").open("w")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("GYMQ_", "MAKE"))}
    said: dict[str, str] = {}
    for kind, rest, body in blocks():
        if kind != "sh":
            if rest:
                (project / rest).write_text(body)
            continue
        if rest.startswith("skip:"):
            continue
        if rest == "background":
            spawn(["bash", "-c", shell + "exec " + body.strip()], env=environment, stdout=log, stderr=subprocess.STDOUT)
            for command, sign in SIGNS.items():
                if body.startswith(command):
                    wait_until((project / sign).exists, 20, f"{sign} after {body}")
            continue
        # What a block exports or activates stays, as it does in a person's shell.
        done = subprocess.run(
            ["bash", "-c", f'{shell}{body}\nenv -0 > "{tmp_path}/env"'],
            env=environment, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{body}\n{done.stdout}\n{done.stderr}"
        pairs = (tmp_path / "env").read_text().split("\0")
        environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        said[body] = done.stdout
    # Then the files that it speaks of are there, with as many rollouts as it says
    counts = {path.name: len(path.read_bytes().splitlines()) for path in (project / "out").glob("*.jsonl")}
    assert counts == {
        "demo.jsonl": 200, "weather.jsonl": 240, "dice.jsonl": 16, "patient.jsonl": 2, "first.jsonl": 120
    }  # fmt: skip
    demo = next(text for body, text in said.items() if body.startswith("make demo"))
    assert demo.strip().splitlines()[-1].strip().endswith("out/demo.jsonl")
    five = next(text for body, text in said.items() if body.startswith("python out/five.py"))
    assert five.startswith("1.0 ")
    assert len(five.splitlines()) == 5  # and a table with a head and three rows
    groups = next(text for body, text in said.items() if body.startswith("python out/train.py"))
    assert groups.startswith("first.")
    assert "dice" in next(text for body, text in said.items() if "gymq env list" in body)


def test_the_readme_names_no_file_that_is_not_there():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / name).exists(), name
