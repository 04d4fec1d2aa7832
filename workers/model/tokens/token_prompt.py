"""A prompt of exact token ids: what it goes on from, which answers and which images stand in it, and what its record says."""

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
        names: a digest of each.
    """

    names: list[str]

    def before(self, message: int) -> int:
        """How many stand in the messages before one."""
        ...

    async def expand(self, ids: list[int], first: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Put each image's ids where its placeholder is.

        Args:
            ids: ids that hold placeholders.
            first: the image that the first of them stands for.

        Returns:
            the expanded ids, and the start and the end of each image in them.
        """
        ...


class PromptMessage(msgspec.Struct):
    """An answer in a chain of ids.

    Args:
        index: the index of its message.
        start: how many ids there are before it: its prompt.
        end: how many there are up to its end.
        asked: how many characters of the entry's text its prompt was; -1: not known.
    """

    index: int
    start: int
    end: int
    asked: int = -1


class Prompt(msgspec.Struct):
    """The next call's prompt.

    Args:
        ids: its token ids, int32.
        start: so many first ids are those of the rollout's previous call, its prompt and its output.
        forked: whether those are not all of them: the template rewrote what came before.
        text: what the template rendered.
        answers: the answers that stand in it as they were sampled.
        places: where its images stand.
    """

    ids: array[int]
    start: int
    forked: bool
    text: str
    answers: list[PromptMessage]
    places: list[ImageSpan]

    def tokens(self, output: list[int], logprobs: list[float], versions: list[tuple[int, int]]) -> Tokens:
        """Pack the call's tokens for its record.

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
