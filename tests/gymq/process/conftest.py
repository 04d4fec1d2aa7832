from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec
import pytest

import gymq


@pytest.fixture(scope="module")
def world():
    """A folder that everybody may read, with a copy of gymq, for processes that are not we."""
    folder = Path(tempfile.mkdtemp(prefix="gymq-test-"))
    try:
        for module in (gymq, msgspec):
            shutil.copytree(Path(module.__file__).parent, folder / Path(module.__file__).parent.name)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def temporary(monkeypatch):
    """A folder of its own for what would lie in /tmp, which others may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="gymq-test-"))
    folder.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)
