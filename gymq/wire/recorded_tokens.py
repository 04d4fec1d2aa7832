"""The token ids of a rollout's answers, read back from the records of its calls."""

from __future__ import annotations

import msgspec

from gymq.wire.calls import Tokens
from gymq.wire.record import CallRecord, narrow

_decoder = msgspec.json.Decoder(narrow(CallRecord, "call", "message", "tokens"))


def past(records: list[bytes], step: int) -> list[tuple[int, Tokens]]:
    """Return the index of each answer's message in the conversation, and its tokens, oldest first.

    Args:
        records: the encoded records of a rollout's calls, oldest first.
        step: the step before which the calls were sent.
    """
    answers: list[tuple[int, Tokens]] = []
    for data in records:
        if b'"tokens":' not in data:
            continue
        call = _decoder.decode(data)
        if call.tokens is not None and call.message is not None and int(call.call.partition(".")[0]) < step:
            answers.append((call.message, call.tokens.tokens()))
    return answers
