"""The opening of a conversation: the task's own messages, and those of the environment's `open`."""

from __future__ import annotations

from typing import Any

from gymq.wire.message import Message, decode_message, encode_message

#: Roles of instructions, which stand before all else: many chat templates refuse them elsewhere.
_INSTRUCTING = frozenset({"system", "developer"})


def opening_messages(task: list[bytes], opened: list[bytes]) -> list[bytes]:
    """Return the opening messages: instructions of the environment, the task's messages, the environment's others.

    Instructions of the environment are its messages of the role `system` or `developer` before any other. Where the task
    begins with some too, the two become one message, the environment's text first: many chat templates refuse a second one.

    Args:
        task: the task's encoded messages.
        opened: the encoded messages that `open` gave.
    """
    decoded = [decode_message(message) for message in opened]
    leading = next((i for i, message in enumerate(decoded) if message.role not in _INSTRUCTING), len(decoded))
    if not leading:
        return task + opened
    own = decode_message(task[0]) if task else None
    if own is None or own.role not in _INSTRUCTING:
        return opened[:leading] + task + opened[leading:]
    joined = Message(role=own.role, content=_joined(decoded[leading - 1].content, own.content))
    return [*opened[: leading - 1], encode_message(joined), *task[1:], *opened[leading:]]


def _joined(first: str | list[dict[str, Any]] | None, second: str | list[dict[str, Any]] | None) -> str | list[dict[str, Any]]:
    if isinstance(first, list) or isinstance(second, list):
        return [*_parts(first), *_parts(second)]
    return "\n\n".join(filter(None, (first, second)))


def _parts(content: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
