"""`gymq run` under `gymq chaos`, and killed itself: the same command continues."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.farm import PLUGIN
from tests.support.waiting import wait_until

from .checker import check_file
from .driver import FULL, write_rows
from .report import note
from .test_chaos import SEED

#: Rollouts of the run.
ROWS = 300 if FULL else 120

#: How often the supervising process is killed.
LIVES = 3 if FULL else 2

#: Seconds for which workers are hit in each of its lives.
HITS = "10" if FULL else "5"

CLI = [sys.executable, "-m", "gymq.cli"]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_gymq_run_and_all_it_has_started_die_and_the_same_command_continues(spawn, tmp_path: Path):
    out, rows, log = tmp_path / "out.jsonl", tmp_path / "rows.jsonl", tmp_path / "run.log"
    write_rows(rows, ROWS, tmp_path / "journal")
    environment = {"PYTHONPATH": str(PLUGIN), "GYMQ_LIVENESS": "1"}
    argv = [*CLI, "run", "everything", "--data", f"slowly:0.005:{rows}", "--model", "scripted"]
    argv += ["--concurrency", "16", "--out", str(out)]

    def ended() -> int:
        return out.read_bytes().count(b"\n") if out.exists() else 0

    seeds, strikes = random.Random(SEED), 0
    for life in range(LIVES):
        # Given a run that goes on, with one worker of each role
        with log.open("ab") as file:
            run = spawn(argv, environment, stdout=file, stderr=subprocess.STDOUT)
        before = ended()
        wait_until(lambda before=before: ended() >= before + 10, 60, "ten rollouts")
        # When its workers are hit, and it starts them again, and then it is killed itself
        seed = str(seeds.randrange(1 << 32))
        chaos = [*CLI, "chaos", "--of", str(out), "--every", "2", "--for", HITS, "--seed", seed, "--yes"]
        done = subprocess.run(chaos, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"seed {seed}" in done.stdout
        strikes += sum(line.startswith(("kill", "stop")) and "answered" not in line for line in done.stdout.splitlines())
        time.sleep(seeds.uniform(0, 2))
        assert run.poll() is None, log.read_text()[-2000:]
        if life < LIVES - 1:
            run.kill()
            run.wait()
    # Then the last one ends well, and every rollout stands in the file once
    assert run.wait(200) == 0, log.read_text()[-2000:]
    verdict = check_file(out, ROWS, {"gymq run": LIVES - 1, "its workers": strikes})
    note("`gymq run` and its workers", verdict, SEED)
    verdict.good()
