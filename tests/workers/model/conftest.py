"""A mock model server, and started backends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from gymq_workers.model.openai.backend import OpenAIBackend

from gymq.api.backend import Backend
from tests.support.model_server import run_server


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server that fails only when a model's name asks for it."""
    yield from run_server()


@pytest.fixture
async def backend(server: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Makes started backends: `backend("mock-429", retries=0)`."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    # Waits are what they are, only a hundred times shorter.
    monkeypatch.setattr("gymq_workers.model.openai.retry.FIRST_WAIT", 0.005)
    made: list[Backend] = []

    async def make(model: str = "mock", **options: Any) -> OpenAIBackend:
        options.setdefault("base_url", f"{server}/v1")
        one = OpenAIBackend(model, options)
        await one.start()
        made.append(one)
        return one

    yield make
    for one in made:
        await one.stop()
