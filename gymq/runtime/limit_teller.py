"""The events of a process's rate limits: a limit begins to hold requests back, changes much, and ends."""

from __future__ import annotations

from gymq.observe.events import LimitInForce, LimitLifted, emit
from gymq.store.scripts import PermitReply

#: Seconds between two events of a limit whose rate changes, and after which one that holds no request has ended: a learned rate
#: changes every second, and a stated limit holds requests again and again.
PAUSE = 30.0


class LimitTeller:
    """Tells of one endpoint's limits.

    Args:
        label: what they are the limits of, in words.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._told: LimitInForce | None = None
        self._told_at = 0.0
        self._held_at = 0.0

    def replied(self, reply: PermitReply, waiting: int, now: float) -> None:
        """Tell what a reply changes.

        Args:
            reply: the reply.
            waiting: requests that wait in this process.
            now: seconds, of any clock.
        """
        if self._told is not None and self._ended(self._told, reply, now):
            emit(LimitLifted(self._label, self._told.limit))
            self._told = None
        if not reply.limit:
            return
        if self._told is None or self._changed(self._told, reply, now):
            self._told, self._told_at = LimitInForce(self._label, reply.limit, reply.rate, waiting), now
            emit(self._told)
        if reply.limit == self._told.limit:
            self._held_at = now

    def _changed(self, told: LimitInForce, reply: PermitReply, now: float) -> bool:
        return reply.limit == told.limit and now >= self._told_at + PAUSE and not 0.5 < reply.rate / told.rate < 2

    def _ended(self, told: LimitInForce, reply: PermitReply, now: float) -> bool:
        """Return whether the limit that was told has ended, or gives way to a learned one."""
        replaced = reply.learned is None if told.limit == "learned" else reply.limit == "learned"
        return replaced or now >= self._held_at + PAUSE
