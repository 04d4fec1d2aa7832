"""The new part of a prompt's token ids: what the rollout's earlier records do not hold."""

from __future__ import annotations

import hashlib

from cachetools import LRUCache

from gymq.api.backend import Request
from gymq.wire.calls import Tokens


class Prefixes:
    """Digests of the token ids of each rollout's last call, so that the next call stores only the new part of its prompt.

    A digest is valid only while its answer is the conversation's last: another worker may have answered since, or the answer
    may have been dropped. Otherwise the ids are read from the rollout's records.

    Args:
        size: rollouts that are kept.
    """

    def __init__(self, size: int) -> None:
        self._seen: LRUCache[str, tuple[int, int, int, bytes]] = LRUCache(size)

    async def tokens(
        self,
        request: Request,
        answer: bytes,
        prompt: bytes,
        output: bytes,
        logprobs: bytes,
        versions: list[tuple[int, int]] | None = None,
    ) -> Tokens:
        """Return a call's tokens, of its prompt only the part that is new to the rollout.

        Args:
            request: the call.
            answer: its answer, an encoded message.
            prompt: all of its prompt's ids, packed as in `Tokens`.
            output, logprobs, versions: see `Tokens`.
        """
        start = await self._known(request, prompt) if prompt else 0
        if prompt and output:
            self._remember(request, answer, prompt + output)
        return Tokens(start // 4, prompt[start:], output, logprobs, versions or [])

    async def _known(self, request: Request, prompt: bytes) -> int:
        """Return how many bytes of a prompt are the ids of the rollout's previous call, whichever worker answered it."""
        encoded = request.messages.encoded
        index, answer, length, digest = self._seen.get(request.rollout, (len(encoded), 0, 0, b""))
        if index < len(encoded) and hash(encoded[index]) == answer and not any(map(_assistant, encoded[index + 1 :])):
            return length if _digest(prompt[:length]) == digest else 0
        if request.history is None or not any(map(_assistant, encoded)):
            return 0
        before = b""
        for _, tokens in await request.history():
            before = before[: 4 * tokens.prompt_start] + tokens.prompt + tokens.output
        return len(before) if prompt.startswith(before) else 0

    def _remember(self, request: Request, answer: bytes, ids: bytes) -> None:
        """Keep the digest of a call's ids, prompt and output, with the answer that they belong to."""
        self._seen[request.rollout] = (len(request.messages.encoded), hash(answer), len(ids), _digest(ids))


def _assistant(turn: bytes) -> bool:
    return turn.startswith(b'{"role":"assistant"')


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
