"""Tasks: what a rollout is asked to do, as it stands in a run's ledger."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec

from gymq.wire.json_types import JsonObject
from gymq.wire.message import Conversation

_encoder = msgspec.msgpack.Encoder()


class Task(msgspec.Struct, array_like=True, dict=True):
    """One task. All samples of a task form its group.

    Args:
        id: unique within the run.
        environment: the registered name of its environment.
        encoded: the opening messages, each encoded as JSON.
        fields: the row's other fields (the expected answer, say), a JSON object; verifiers see it, results repeat it.
        sampling: the row's own sampling parameters for the model, a JSON object.
        tools: the tools that the row declares to the model, a JSON list of chat-completions tools; None: the environment's.
    """

    id: str
    environment: str
    encoded: list[bytes]
    fields: bytes = b"{}"
    sampling: bytes = b"{}"
    tools: bytes | None = None

    @cached_property
    def data(self) -> JsonObject:
        """The row's fields, decoded."""
        return msgspec.json.decode(self.fields)

    @cached_property
    def messages(self) -> Conversation:
        """The opening messages."""
        return Conversation(self.encoded)

    def __getitem__(self, field: str) -> Any:
        return self.data[field]

    def get(self, field: str, default: Any = None) -> Any:
        """Return a field of the row, or a default.

        Args:
            field: the field's name.
            default: the value where the row has no such field.
        """
        return self.data.get(field, default)


_decoder = msgspec.msgpack.Decoder(Task)


def encode_task(task: Task) -> bytes:
    """Encode a task as it stands in the ledger."""
    return _encoder.encode(task)


def decode_task(data: bytes) -> Task:
    """Decode a task from the ledger."""
    return _decoder.decode(data)
