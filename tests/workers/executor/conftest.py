"""Executors as real processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.executor import Executor, start_executor


@pytest.fixture
def new_executor(redis_url, spawn, tmp_path, monkeypatch) -> Callable[..., Executor]:
    """Start an executor: `new_executor(name="x", children=2)`."""
    return lambda **options: start_executor(redis_url, spawn, tmp_path, monkeypatch, **options)


@pytest.fixture
def executor(new_executor) -> Executor:
    """An executor with two children."""
    return new_executor()
