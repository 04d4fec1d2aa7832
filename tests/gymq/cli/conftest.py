"""The command line as users see it, in processes of its own, and model servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.model_server import run_server


@pytest.fixture
def cli(spawn, tmp_path: Path) -> Cli:
    return Cli(spawn, tmp_path)


@pytest.fixture(scope="session")
def slow_model() -> Iterator[str]:
    """The base URL of a model server that takes 0.4 s for an answer."""
    for url in run_server("--port", "0", "--latency", "0.4"):
        yield f"{url}/v1"


@pytest.fixture(scope="session")
def model() -> Iterator[str]:
    """The base URL of a model server that answers at once."""
    for url in run_server("--port", "0", "--latency", "0"):
        yield f"{url}/v1"
