"""Token ids as they stand in the records of a rollout's calls: JSON objects, each array base64 of its little-endian bytes."""

from __future__ import annotations

from typing import Any

import msgspec

from gymq.wire.calls import ImageSpan, Tokens


class RecordedTokens(msgspec.Struct):
    """`gymq.call.Tokens` in a call's record; msgspec writes bytes as base64."""

    prompt_start: int = 0
    prompt: bytes = b""
    output: bytes = b""
    logprobs: bytes = b""
    versions: list[tuple[int, int]] = []
    images: list[ImageSpan] | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, tokens: Tokens) -> RecordedTokens:
        """What the record of a call says of its tokens."""
        images = tokens.images or msgspec.UNSET
        return cls(tokens.prompt_start, tokens.prompt, tokens.output, tokens.logprobs, tokens.versions, images)


class RecordedCall(msgspec.Struct):
    """A call's record, as far as token ids are concerned; `docs/rollouts.md` tells all of its fields."""

    call: str
    kind: str
    message: int | None = None
    fault: Any = None
    tokens: RecordedTokens | None = None


_decoder = msgspec.json.Decoder(RecordedCall)


def past(records: list[bytes], step: int) -> list[tuple[int, Tokens]]:
    """The tokens of a rollout's answers.

    Args:
        records: the encoded records of its calls, oldest first.
        step: the step before which the calls were sent.

    Returns:
        the index of each answer's message, and its tokens, oldest first.
    """
    found: list[tuple[int, Tokens]] = []
    for data in records:
        if b'"tokens":' not in data:
            continue
        record = _decoder.decode(data)
        if record.tokens is not None and record.message is not None and int(record.call.partition(".")[0]) < step:
            t = record.tokens
            images = t.images or []
            found.append((record.message, Tokens(t.prompt_start, t.prompt, t.output, t.logprobs, t.versions, images)))
    return found
