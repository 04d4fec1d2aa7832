"""Pacing of a call's requests by the endpoint's shared rate limits: estimated costs before, true costs after."""

from __future__ import annotations

import re
import time

from gymq.api.backend import Request
from gymq.api.limiter import PERMIT_WAIT, Limiter, Permit, turn_in_queue
from gymq.errors import CallError
from gymq.wire.calls import Usage

from .retry import Transient

#: Tokens of the first answer, where the request names no limit: those of a chat model's usual answer.
FIRST_GUESS = 500

#: Bytes of a request per token: English text has about four; the answer's usage corrects the estimate.
BYTES_PER_TOKEN = 4

#: Weight of the newest answer in the mean of the answers' tokens.
NEWEST = 0.05

_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d{1,9})\b')


class SizeEstimate:
    """The mean length of a model's answers, in tokens."""

    def __init__(self) -> None:
        self.mean: float | None = None

    def add(self, tokens: int) -> None:
        """Take an answer's tokens into the mean."""
        self.mean = tokens if self.mean is None else self.mean + NEWEST * (tokens - self.mean)

    def expect(self, fields: bytes) -> float:
        """Return the tokens of the next answer: the mean; before the first answer, the request's limit."""
        if self.mean is not None:
            return self.mean
        stated = _MAX_TOKENS.search(fields)
        return float(stated[1]) if stated else FIRST_GUESS


class RequestPacing:
    """The requests of one call, one after another.

    Args:
        sizes: the mean length of the model's answers.
        request: the call; the time spent waiting is added to its `waited`.
        body: the body of its requests.
    """

    def __init__(self, sizes: SizeEstimate, request: Request, body: bytes) -> None:
        self._limiter: Limiter | None = None
        self._sizes = sizes
        self._request = request
        self._size = len(body)
        self._place = turn_in_queue(time.monotonic(), request.step)
        self._gated = 0.0
        self._permit = Permit([])

    async def enter(self, limiter: Limiter | None, host: str) -> None:
        """Wait until a request may be sent.

        Args:
            limiter: the endpoint's limits; None: it has none.
            host: the endpoint's host, for the fault.

        Raises:
            CallError: `timeout`.
        """
        self._limiter = limiter
        if limiter is None:
            return
        # Of all tries together: their sum must end before the call is overdue.
        patience = max(0.001, PERMIT_WAIT - self._gated)
        tokens = self._size / BYTES_PER_TOKEN + self._sizes.expect(self._request.body)
        try:
            self._permit = await limiter.enter(patience, self._place, tokens=tokens)
        except CallError as error:
            self._request.waited += patience
            raise CallError("timeout", f"{host}: {error}") from None
        self._gated += self._permit.waited
        self._request.waited += self._permit.waited

    def failed(self, failure: Transient) -> float:
        """Report that the request failed, and return the seconds that the call has waited for permits."""
        if self._limiter is None:
            return self._gated
        if failure.limited:
            self._limiter.refused(self._permit)
        if failure.kind != "timeout":  # after a time-out the server may still be sampling
            self._limiter.correct(self._permit, tokens=0.0)
        return self._gated

    def answered(self, usage: Usage) -> None:
        """Report that the request was answered; without a count of tokens the estimate stands."""
        if self._limiter is None:
            return
        total = usage.input_tokens + usage.output_tokens
        if total:
            self._sizes.add(usage.output_tokens)
            self._limiter.correct(self._permit, tokens=float(total))
