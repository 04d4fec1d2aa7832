"""What programs see of this Python, and what they do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gymq.process.sandbox import run_program
from tests.support.sandboxes import needs_namespaces

ROOT = Path(__file__).parents[3]

#: Plays the caller of a program that looks for words in all files of a Python's folder, and prints those that it finds.
CALLER = """
import sys
from gymq import run_program
from gymq.process import python_files
look = '''
import os, sys
found = set()
for folder, _, names in os.walk(sys.argv[1], followlinks=True):
    for name in names:
        try:
            data = open(os.path.join(folder, name), "rb").read()
        except OSError:
            continue
        found |= {word for word in sys.argv[2:] if word.encode() in data}
print(sorted(found))
'''
ran = run_program(["python", "-c", look, sys.prefix, *sys.argv[1:]])
assert ran.walls == "namespaces" and ran.ok, ran
print(ran.stdout, end="")
"""


def lay(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@needs_namespaces
def test_answers_of_installed_environments_and_credentials_cannot_be_read(tmp_path):
    # Given a Python with an environment of somebody, an ordinary package, ours, and credentials
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    theirs = {"theirs/__init__.py": "", "theirs/data/rows.jsonl": "word-1", "theirs_one.py": "word-2"}
    shared = {"space/theirs/rows.jsonl": "word-3"}
    point = "[gymq.environments]\ntheirs = theirs.world:World\n"
    record = "".join(
        f"{name},,\n" for name in [*theirs, *shared, "../../../share/theirs/rows.jsonl", "theirs-1.dist-info/RECORD"]
    )
    lay(packages, {**theirs, **shared, "space/other.py": "open-1", "other/__init__.py": "open-2", "extra.pth": "open-3"})
    lay(packages / "theirs-1.dist-info", {"METADATA": "Name: theirs\nVersion: 1\n", "entry_points.txt": point})
    lay(packages / "theirs-1.dist-info", {"RECORD": record})
    ours = "[gymq.environments]\nours = ours.world:World\n"
    lay(packages / "ours-1.dist-info", {"METADATA": "Name: ours\nVersion: 1\n", "entry_points.txt": ours})
    lay(packages, {"ours/__init__.py": "", "ours/rows.jsonl": "word-4"})
    edited = '{"url": "file://%s", "dir_info": {"editable": true}}' % (packages / "src" / "edited")
    lay(packages / "edited-1.dist-info", {"METADATA": "Name: edited\nVersion: 1\n", "direct_url.json": edited})
    lay(packages / "edited-1.dist-info", {"entry_points.txt": "[gymq.environments]\nedited = edited:World\n", "RECORD": ""})
    lay(packages, {"src/edited/rows.jsonl": "word-5"})
    lay(tmp_path / "venv", {"share/theirs/rows.jsonl": "word-6", "pip.conf": "word-7", "etc/jupyter/token.json": "word-8"})
    # When a program looks through it
    words = [*(f"word-{number}" for number in range(1, 9)), *(f"open-{number}" for number in range(1, 4))]
    path = os.pathsep.join([str(packages), str(ROOT), *(place for place in sys.path if "site-packages" in place)])
    python = str(tmp_path / "venv" / "bin" / "python")
    ran = subprocess.run(
        [python, "-c", CALLER, *words], cwd=tmp_path, env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    # Then it finds what is nobody's answer, and nothing else
    assert ran.stdout.strip() == str(["open-1", "open-2", "open-3"]), ran


@needs_namespaces
def test_a_covered_place_can_be_made_readable(monkeypatch, tmp_path):
    # Given a folder that a program would see empty
    import msgspec

    from gymq.process import python_files

    package = os.path.dirname(msgspec.__file__)
    monkeypatch.setattr(python_files, "covered", lambda: [package])
    look = ["python", "-c", "import os, sys; print(sorted(os.listdir(sys.argv[1])))", package]
    assert run_program(look).stdout == "[]\n"
    # Then it sees what its caller names
    assert run_program(look, readable=[f"{package}/__init__.py"]).stdout == "['__init__.py']\n"
    assert "json.py" in run_program(look, readable=[package]).stdout


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="needs Linux")
def test_what_is_covered_of_this_python_are_the_packages_of_environments():
    from gymq.process import python_files

    assert all("gymq" in path or path.endswith(("pip.conf", "condarc")) for path in python_files.covered())
