"""The outages that this process sees: one for a shard, whatever number of its connections breaks."""

from __future__ import annotations

import time

from gymq.observe.events import OutageBegan, OutageEnded, emit
from gymq.store.topology import Address

#: Since when each shard has been away, seconds of the monotonic clock.
_away: dict[int, float] = {}


def began(shard: int, address: Address, reason: object) -> None:
    """Tell that a shard is away, unless that was told.

    Args:
        shard: its number.
        address: its address.
        reason: the error.
    """
    now = time.monotonic()
    if _away.setdefault(shard, now) is now:
        emit(OutageBegan(shard, address.place, " ".join(str(reason).split())))


def ended(shard: int, address: Address) -> None:
    """Tell that a shard has answered, if its outage was told.

    Args:
        shard: its number.
        address: its address.
    """
    since = _away.pop(shard, None)
    if since is not None:
        emit(OutageEnded(shard, address.place, time.monotonic() - since))
