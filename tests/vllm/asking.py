"""Asking a backend, and scoring what it said with another implementation of the model."""

from __future__ import annotations

import array
from pathlib import Path
from typing import Any

import msgspec

from gymq.api.backend import Request
from gymq.wire.calls import Generated, Tokens
from gymq.wire.message import Conversation, Message, decode_message, encode_message

_count = 0


def request(*messages: Message | str, rollout: str = "", **body: Any) -> Request:
    """A request; text is a user's message."""
    global _count
    _count += 1
    turns = [encode_message(Message("user", one) if isinstance(one, str) else one) for one in messages]
    return Request(rollout or f"asked-{_count}", "none", Conversation(turns), msgspec.json.encode(body))


def said(answer: Generated) -> Message:
    """An answer's message."""
    return decode_message(answer.message)


def ints(data: bytes) -> list[int]:
    """Packed ids."""
    return array.array("i", data).tolist()


def floats(data: bytes) -> list[float]:
    """Packed logprobs."""
    return array.array("f", data).tolist()


def version_at(tokens: Tokens, index: int) -> int:
    """The version that sampled an id."""
    return [version for first, version in tokens.versions if first <= index][-1]


class Scorer:
    """The logprobs of sampled ids by transformers, in float32."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()

    def score(self, prompt: list[int], output: list[int]) -> list[float]:
        """The logprob of each id of the output."""
        import torch

        with torch.no_grad():
            logits = self._model(torch.tensor([prompt + output])).logits[0].float().log_softmax(-1)
        return [float(logits[len(prompt) - 1 + i, one]) for i, one in enumerate(output)]
