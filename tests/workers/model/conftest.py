"""A mock model server in a process of its own, and requests to ask it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gymq_workers.model.openai_backend import OpenAIBackend

from gymq.backend import Backend, Request
from gymq.message import Conversation, Message, encode_message

ROOT = Path(__file__).parents[3]


def run_server(*flags: str) -> Iterator[str]:
    """A mock server's address."""
    process = subprocess.Popen([sys.executable, "-m", "bench.mock_server", *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().split()[-1]
    process.terminate()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server that fails only when a model's name asks for it."""
    yield from run_server()


@pytest.fixture
async def backend(server: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Makes started backends: `backend("mock-429", retries=0)`."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    # Waits are what they are, only a hundred times shorter.
    monkeypatch.setattr("gymq_workers.model.retry.FIRST_WAIT", 0.005)
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


def ask(*messages: Message | str, rollout: str = "run.0.0", environment: str = "weather", body: bytes = b"{}") -> Request:
    """A request; plain strings are user messages."""
    turns = [encode_message(Message("user", each) if isinstance(each, str) else each) for each in messages]
    return Request(rollout, environment, Conversation(turns), body)
