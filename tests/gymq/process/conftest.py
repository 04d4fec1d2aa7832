from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.sandboxes import world  # noqa: F401


@pytest.fixture
def temporary(monkeypatch):
    """A folder of its own for what would lie in /tmp, which others may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="gymq-test-"))
    folder.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)
