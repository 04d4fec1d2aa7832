"""The Makefile refuses what it cannot work with before it installs anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: An interpreter that says of itself that it is of another version.
INTERPRETER = """\
#!/bin/sh
exec {python} -c 'import sys; sys.version_info = {version}; exec(sys.argv[2])' "$@"
"""


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_a_python_that_is_too_old_is_refused_in_one_line(tmp_path: Path, target: str):
    old = tmp_path / "python3.10"
    old.write_text(INTERPRETER.format(python=sys.executable, version=(3, 10, 12)))
    old.chmod(0o755)
    argv = ["make", "-C", ROOT, target, f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert said == [f"{old} is Python 3.10; gymq needs 3.11 or newer: make PYTHON=python3.11 ..."]
    assert not (tmp_path / "venv").exists()
