"""Text for prompts."""

from __future__ import annotations

WORDS = (
    "queue",
    "actor",
    "lease",
    "reward",
    "rollout",
    "mailbox",
    "verifier",
    "group",
    "sample",
    "turn",
    "token",
    "task",
    "worker",
)


def text(index: int, words: int) -> str:
    """Some words, the same for the same index, and unlike all others from their beginning."""
    return f"{index}: " + " ".join(WORDS[(index * 7 + i * (1 + index % 5)) % len(WORDS)] for i in range(words))
