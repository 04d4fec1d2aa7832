"""The command line, run as users run it: `gymq` in a folder of its own, with all that it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.waiting import wait_until

GYMQ = str(Path(sys.executable).parent / "gymq")
ROOT = Path(__file__).parents[2]

#: Seconds after which a command hangs.
LIMIT = 90

ENVIRONMENT = {"GYMQ_LIVENESS": "1", "OPENAI_API_KEY": "none", "COLUMNS": "200"}


class Cli:
    """Runs commands in a folder of their own.

    Attributes:
        env: variables for all commands.
    """

    def __init__(self, spawn, folder: Path) -> None:
        self._spawn = spawn
        self.folder = folder
        self.env = dict(ENVIRONMENT)

    def __call__(self, *args: object, code: int | None = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `code`: what it must exit with, None: whatever."""
        argv = [GYMQ, *map(str, args)]
        environment = {k: v for k, v in os.environ.items() if k != "GYMQ_REDIS_URL"} | self.env
        done = subprocess.run(
            argv, check=False, cwd=self.folder, env=environment, input=stdin, capture_output=True, text=True, timeout=LIMIT
        )
        assert "Traceback" not in done.stdout + done.stderr
        if code is not None:
            assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *args: object) -> subprocess.Popen[bytes]:
        """Start a command; its output goes to `<command>.log`."""
        with (self.folder / f"{args[0]}.log").open("ab") as log:
            return self._spawn([GYMQ, *map(str, args)], env=self.env, cwd=self.folder, stdout=log, stderr=log)

    def rows(self, name: str = "out.jsonl") -> list[dict]:
        """The finished rollouts of a file; none if it is not there."""
        path = self.folder / name
        return (
            [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1:] == "\n"]
            if path.exists()
            else []
        )

    def wait_rows(self, count: int, name: str = "out.jsonl") -> None:
        """Wait until a file has so many finished rollouts."""
        wait_until(lambda: len(self.rows(name)) >= count, 40, f"{count} rows in {name}, {len(self.rows(name))} now")


def data(environment: str) -> Path:
    """The rows that an environment ships."""
    return ROOT / "environments" / environment / "data" / "train.jsonl"


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and all that it has started."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """`kill -9` a process and all that it has started."""
    for one in family(process):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def ids(rows: list[dict]) -> list[tuple[int, int]]:
    """Row and sample of each rollout, sorted."""
    return sorted((int(row["rollout_id"].split(".")[1]), row["sample"]) for row in rows)
