"""A prompt of exact token ids, with the answers and the images in it, and its record."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import Protocol

import msgspec

from gymq.wire.calls import ImageSpan, Tokens


class Pictures(Protocol):
    """The images of a conversation, in order.

    Args:
        names: their digests.
    """

    names: list[str]

    def before(self, message: int) -> int:
        """Return how many stand in the messages before this index."""
        ...

    async def expand(self, ids: list[int], first: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Put each image's ids in its placeholder's place.

        Args:
            ids: ids that hold placeholders.
            first: the index of the first placeholder's image.

        Returns:
            the expanded ids, and each image's start and end in them.
        """
        ...


class PromptMessage(msgspec.Struct):
    """An answer within a prompt's ids.

    Args:
        index: the index of its message.
        start: its first id's index: the length of its prompt.
        end: the index behind its last id.
        asked: the length of its prompt's text, in characters; -1: not known.
    """

    index: int
    start: int
    end: int
    asked: int = -1


class Prompt(msgspec.Struct):
    """The next call's prompt.

    Args:
        ids: its token ids, int32.
        start: the number of first ids that it shares with the rollout's previous call, prompt and output.
        forked: whether the previous call has more ids than those: the template changed earlier text.
        text: the rendered text.
        answers: the answers in it, as they were sampled.
        places: the images in it.
    """

    ids: array[int]
    start: int
    forked: bool
    text: str
    answers: list[PromptMessage]
    places: list[ImageSpan]

    def tokens(self, output: list[int], logprobs: list[float], versions: list[tuple[int, int]]) -> Tokens:
        """Return the call's tokens for its record.

        Args:
            output: the sampled ids.
            logprobs: one for each, or none.
            versions: see `Tokens`.
        """
        images = [place for place in self.places if place.start >= self.start]
        return Tokens(self.start, pack_ids(self.ids[self.start :]), pack_ids(output), pack_logprobs(logprobs), versions, images)


def pack_ids(ids: Sequence[int]) -> bytes:
    """Return token ids as records hold them: little-endian int32."""
    return struct.pack(f"<{len(ids)}i", *ids)


def unpack_ids(packed: bytes) -> array[int]:
    """Return the token ids of `pack_ids`."""
    return array("i", struct.unpack(f"<{len(packed) // 4}i", packed))


def pack_logprobs(logprobs: Sequence[float]) -> bytes:
    """Return log probabilities as records hold them: little-endian float32."""
    return struct.pack(f"<{len(logprobs)}f", *logprobs)
