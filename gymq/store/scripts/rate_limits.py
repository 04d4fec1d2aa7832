"""The script of shared rate limits."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gymq.api.backend import Limit
from gymq.store.scripts.script import ScriptCall, pack


class Refusal(msgspec.Struct):
    """A permit that the endpoint refused.

    Args:
        at: the server's ms at which the permit was granted.
        pause: ms in which no process may ask.
        fresh: True: this process asked for no permits so far.
        answers: the endpoint's answers to this process per second.
    """

    at: float
    pause: float
    fresh: bool
    answers: float


class PermitRequest(msgspec.Struct):
    """One process's permits.

    Args:
        name: the limits' common name.
        process: the process's name.
        limits: the limits.
        asks: costs of each permit that is asked for, one cost per limit, in the order in which they are granted.
        back: what is given back: an amount per limit, then a number of permits.
        refusal: the newest refusal since the last request.
    """

    name: str
    process: str
    limits: Sequence[Limit]
    asks: Sequence[Sequence[float]]
    back: Sequence[float]
    refusal: Refusal | None = None


class PermitReply(msgspec.Struct):
    """Permits that were granted.

    Args:
        granted: how many of the asks.
        wait: ms until asking again makes sense.
        now: the server's ms.
        learned: True while a learned rate or a pause holds.
    """

    granted: int
    wait: int
    now: int
    learned: bool


def acquire_permits(request: PermitRequest) -> ScriptCall[PermitReply]:
    """Grant permits in the order in which they are asked for, and learn from a refusal."""
    return ScriptCall(
        "acquire_permits",
        (pack(request),),
        lambda reply: PermitReply(reply[0], reply[1], reply[2], reply[3] == 1),
    )
