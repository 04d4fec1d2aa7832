"""What is new in a prompt's token ids since the rollout's last call."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from gymq.api.backend import Request
from gymq.wire.calls import Tokens


class Prefixes:
    """Digests of the token ids of each rollout's last call, so that the next call stores only what is new of its prompt.

    Only the answer to the rollout's previous call counts: a digest is used only where that very answer is the
    conversation's last, because another worker may have answered in between, or this one's answer may have been dropped.
    Then the ids are read from the rollout's records.

    Args:
        size: how many rollouts to remember.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen: OrderedDict[str, tuple[int, int, int, bytes]] = OrderedDict()

    async def tokens(
        self,
        request: Request,
        answer: bytes,
        prompt: bytes,
        output: bytes,
        logprobs: bytes,
        versions: list[tuple[int, int]] | None = None,
    ) -> Tokens:
        """A call's tokens, of its prompt only what is new to the rollout.

        Args:
            request: what was asked.
            answer: the encoded message that was answered.
            prompt: all of its ids, packed as in `Tokens`.
            output, logprobs, versions: see `Tokens`.
        """
        start = await self._known(request, prompt) if prompt else 0
        if prompt and output:
            self._remember(request, answer, prompt + output)
        return Tokens(start // 4, prompt[start:], output, logprobs, versions or [])

    async def _known(self, request: Request, prompt: bytes) -> int:
        """How many bytes of a prompt are the ids of the rollout's previous call, whoever answered that."""
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
        """Note a call's ids, prompt and output, and the answer that they belong to."""
        self._seen[request.rollout] = (len(request.messages.encoded), hash(answer), len(ids), _digest(ids))
        self._seen.move_to_end(request.rollout)
        if len(self._seen) > self._size:
            self._seen.popitem(last=False)


def _assistant(turn: bytes) -> bool:
    return turn.startswith(b'{"role":"assistant"')


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
