"""What a person writes to make a model backend: where a model worker gets its answers from."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from gymq.call import Generated
from gymq.message import Conversation
from gymq.task import Task


class Request(msgspec.Struct):
    """One request for the next message of a conversation.

    Args:
        rollout: the rollout's id, which its conversation keeps over all its requests; of a verifier's question, another.
        environment: the environment's name.
        messages: the conversation so far.
        body: the request's fields but for `model` and `messages` (tools, sampling parameters), a JSON object.
        task: the task; only given if the backend's `needs_task` says so.
    """

    rollout: str
    environment: str
    messages: Conversation
    body: bytes
    task: Task | None = None


class Backend:
    """Base of all model backends.

    Args:
        model: what follows the colon in `--model SPEC`.
        options: the command line's other options (`base_url`, `api`, `timeout`, ...), None where not given.

    Raises:
        UsageError: an option is missing or makes no sense.
    """

    name: ClassVar[str] = ""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.model = model
        self.options = options

    async def probe(self) -> str:
        """What is wrong with the model right now, in one line for a person; "" if nothing is known to be."""
        return ""

    async def start(self) -> None:
        """Open connections, load weights; called on the loop that will call `generate`."""

    def needs_task(self, environment: str) -> bool:
        """Whether requests of an environment's rollouts must carry the task; models are not told it."""
        return False

    async def generate(self, request: Request) -> Generated:
        """Answer one request; hundreds run at once.

        Raises:
            CallError: `model`, `model_unavailable`, `context_overflow`, `replay_miss` or `timeout`.
        """
        raise NotImplementedError(f"backend {type(self).__name__} defines no generate(request)")

    async def stop(self) -> None:
        """Close what `start` opened."""
