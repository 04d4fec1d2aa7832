"""The outages that this process sees: one for a shard, whatever number of its connections breaks; which refusals are one."""

from __future__ import annotations

import re
import time
from enum import Enum

import redis

from gymq.errors import ServerUnreachable
from gymq.observe.events import OutageBegan, OutageEnded, emit
from gymq.store.topology import Address


class Refusal(Enum):
    """The meaning of a server's refusal of a command."""

    #: It cannot serve the shard now: an outage.
    PASSING = "passing"
    #: Its memory is full; sinks make room, and what makes none waits.
    FULL = "full"
    #: It refuses the user.
    ACCESS = "access"
    #: It refuses the command as it is, and will again.
    FINAL = "final"


#: The meanings of error codes; all others are final.
_MEANINGS = {
    "OOM": Refusal.FULL,
    **dict.fromkeys(("NOAUTH", "WRONGPASS", "NOPERM"), Refusal.ACCESS),
    **dict.fromkeys(
        (
            "LOADING",  # it starts
            "BUSY",  # a script holds it
            "READONLY", "MASTERDOWN", "UNBLOCKED",  # it is a replica, or became one
            "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN",  # the slot lies elsewhere, or moves
            "NOREPLICAS",  # fewer replicas follow than `min-replicas-to-write` wants, as while one restarts
            "MISCONF",  # its last snapshot failed, or its log cannot be written: a disk that is full, say
        ),
        Refusal.PASSING,
    ),
}  # fmt: skip

# Servers before 7 put an error that a script met behind words of their own: "ERR Error running script ...: -READONLY ...";
# such a script has written nothing. And the client does so with the error of a pipeline.
_INSIDE = re.compile(rf" (?:-|caused error: )({'|'.join(_MEANINGS)}) ")

#: Since when each shard has been away, seconds of the monotonic clock.
_away: dict[int, float] = {}


def began(shard: int, address: Address, reason: object) -> None:
    """Tell that a shard is away, unless that was told.

    Args:
        shard: its number.
        address: its address.
        reason: the error, whose remedy is for those who start a process: this one waits.
    """
    now = time.monotonic()
    if _away.setdefault(shard, now) is now:
        said = reason.reason if isinstance(reason, ServerUnreachable) else str(reason)
        emit(OutageBegan(shard, address.place, " ".join(said.split())))


def ended(shard: int, address: Address) -> None:
    """Tell that a shard has answered, if its outage was told.

    Args:
        shard: its number.
        address: its address.
    """
    since = _away.pop(shard, None)
    if since is not None:
        emit(OutageEnded(shard, address.place, time.monotonic() - since))


def refusal(error: redis.ResponseError) -> Refusal:
    """Return what a server's refusal means.

    Args:
        error: the error that the client made of it.
    """
    text = str(error)
    inside = _INSIDE.search(text)
    # The client's own classes of errors have cut off the code.
    code = inside[1] if inside else getattr(error, "status_code", None) or text.partition(" ")[0]
    return _MEANINGS.get(code, Refusal.FINAL)
