"""The scripts of shared rate limits: permits, and what the limits are doing."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gymq.api.limiter import Limit
from gymq.store.scripts.script import ScriptCall, pack


class FreeRequests(msgspec.Struct):
    """What a process sent without asking for permits, over the last seconds.

    Args:
        sent: requests.
        refused: those of them that the endpoint refused.
        accepted: those that it did not refuse, per second.
    """

    sent: int
    refused: int
    accepted: float


class PermitRequest(msgspec.Struct):
    """One process's permits.

    Args:
        name: the limits' common name.
        process: the process's name.
        label: what they are the limits of, in words.
        limits: the stated limits.
        asks: costs of each permit that is asked for, one cost per limit, in the order in which they are granted.
        back: what is given back: an amount per limit, then a number of permits.
        waiting: requests that wait in the process, the asks among them.
        waited: seconds that its requests have waited, of those that were granted since the last call.
        lowest: requests per second below which a learned rate never falls.
        refused: for each refusal since the last call, the ms at which its permit was granted; 0: it was sent freely.
        free: what it sent freely; None: nothing was refused, or it asks for permits.
        now: ms; None: the server's clock.
    """

    name: str
    process: str
    label: str
    limits: Sequence[Limit]
    asks: Sequence[Sequence[float]]
    back: Sequence[float]
    waiting: int = 0
    waited: float = 0.0
    lowest: float = 0.0
    refused: Sequence[float] = ()
    free: FreeRequests | None = None
    now: float | None = None


class PermitReply(msgspec.Struct):
    """Permits that were granted.

    Args:
        granted: how many of the asks.
        wait: ms until asking again makes sense.
        now: the ms at which they were granted.
        learned: the learned rate that is in force, requests per second; None: none is.
        limit: the limit that holds the next request back: `requests`, `tokens` or `learned`; "": none does.
        rate: that limit's units per second.
    """

    granted: int
    wait: int
    now: int
    learned: float | None
    limit: str
    rate: float


class RateLimitStatus(msgspec.Struct):
    """What one shared rate limit is doing, over all processes.

    Args:
        label: what it is the limit of, such as `qwen at 10.0.0.1:8000`.
        learned: the rate that is in force because of refusals (HTTP 429), requests per second; None: none is.
        limit: the limit that last let a request wait: `requests` (rpm), `tokens` (tpm) or `learned`; "": none did so far.
        rate: that limit's units per second.
        waiting: requests that wait for a permit now.
        waited: seconds that requests have waited for permits.
        refused: requests that the endpoint refused; like `waited`, since the limit was last unused for two minutes.
    """

    label: str
    learned: float | None
    limit: str
    rate: float
    waiting: int
    waited: float
    refused: int


def acquire_permits(request: PermitRequest) -> ScriptCall[PermitReply]:
    """Grant permits in the order in which they are asked for, and learn from refusals."""
    return ScriptCall(
        "acquire_permits",
        (pack(request),),
        _reply,
    )


def read_rate_limits(now: float | None = None) -> ScriptCall[list[RateLimitStatus]]:
    """Read what the rate limits are doing, by label; they are on shard 0. One that was unused for two minutes is not listed.

    Args:
        now: ms; None: the server's clock.
    """
    return ScriptCall(
        "read_rate_limits",
        ("" if now is None else f"{now:.0f}",),
        lambda reply: [_status(*one) for one in reply],
    )


def _reply(reply: tuple[int, int, int, bytes, bytes, bytes]) -> PermitReply:
    granted, wait, now, learned, limit, rate = reply
    return PermitReply(granted, wait, now, float(learned) if learned else None, limit.decode(), float(rate))


def _status(
    label: bytes, learned: bytes, by: bytes, per: bytes, waiting: int, waited: bytes, refused: bytes
) -> RateLimitStatus:
    rate = float(per)
    return RateLimitStatus(
        label.decode(),
        float(learned) if learned else None,
        (by.decode() or "learned") if rate else "",
        rate,
        waiting,
        float(waited),
        int(float(refused)),
    )
