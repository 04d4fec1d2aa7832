"""The job for Slurm: what can be seen without one. docs/deploy.md says what was seen on a real one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "gymq.sbatch"


def test_bash_reads_it():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True, check=False).stderr == ""


def test_each_variable_that_its_head_lists_is_read_and_none_else():
    text = SCRIPT.read_text()
    listed = set(re.findall(r"^#   (GYMQ_\w+)", text, re.M))
    body = text.split("set -euo pipefail")[1]
    assert listed == set(re.findall(r"\$\{(GYMQ_\w+):-", body))


def test_it_asks_for_time_to_drain_before_the_end():
    # A worker ends within 80 seconds, the sink and the server within 20 more
    (seconds,) = re.findall(r"^#SBATCH --signal=B:USR1@(\d+)$", SCRIPT.read_text(), re.M)
    assert int(seconds) >= 100
    assert "trap out_of_time USR1" in SCRIPT.read_text()


@pytest.mark.slow
def test_shellcheck_has_nothing_to_say():
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; the extra `deploy` has it")
    done = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
