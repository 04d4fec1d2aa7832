"""What tests of backends share: a mock model server in a process of its own, and requests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gymq.api.backend import Request
from gymq.errors import CallError
from gymq.wire.message import Conversation, Message, encode_message

ROOT = Path(__file__).parents[2]


def run_server(*flags: str) -> Iterator[str]:
    """A mock server's address."""
    process = subprocess.Popen([sys.executable, "-m", "bench.mock_server", *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().split()[-1]
    process.terminate()
    process.wait()
    process.stdout.close()


@contextmanager
def servers(*flags: tuple[str, ...]) -> Iterator[list[str]]:
    """Servers that say their numbers in their answers."""
    with ExitStack() as stack:
        found = []
        for number, more in enumerate(flags):
            running = run_server("--called", f"server{number}", *more)
            found.append(f"{next(running)}/v1")
            stack.callback(lambda running=running: next(running, None))
        yield found


async def fault(backend, request):
    """The fault with which a request ends: one line, without the key."""
    with pytest.raises(CallError) as caught:
        await backend.generate(request)
    found = caught.value.fault
    assert "\n" not in found.message
    assert "secret" not in found.message
    return found


def ask(*messages: Message | str, rollout: str = "run.0.0", environment: str = "weather", body: bytes = b"{}") -> Request:
    """A request; plain strings are user messages."""
    turns = [encode_message(Message("user", each) if isinstance(each, str) else each) for each in messages]
    return Request(rollout, environment, Conversation(turns), body)
