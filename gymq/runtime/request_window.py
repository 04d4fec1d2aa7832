"""What a process has sent of late, by the second in which it was sent: requests, and those of them that were refused."""

from __future__ import annotations

from collections import deque

from gymq.store.scripts import FreeRequests

#: Seconds that count: longer than a server takes to refuse, and short enough to notice a new limit within seconds.
WINDOW = 10

#: Seconds over which the rate of accepted requests is taken.
RATE_WINDOW = 3


class RequestWindow:
    """Counts of requests, of the last WINDOW seconds."""

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque(maxlen=WINDOW)  # [second, requests, refused ones], oldest first

    def sent(self, now: float) -> None:
        """Count a request that is sent at a time in seconds."""
        second = int(now)
        if not self._slots or self._slots[-1][0] != second:
            self._slots.append([second, 0, 0])
        self._slots[-1][1] += 1

    def refused(self, sent: float) -> None:
        """Count a refusal of a request that was sent at a time in seconds."""
        for slot in reversed(self._slots):
            if slot[0] == int(sent):
                slot[2] += 1
                return

    def counts(self, now: float) -> FreeRequests:
        """Return the counts at a time in seconds."""
        slots = [slot for slot in self._slots if slot[0] > now - WINDOW]
        late = [slot for slot in slots if slot[0] > now - RATE_WINDOW]
        accepted = sum(requests - refused for _, requests, refused in late)
        # A burst that has just begun counts as what it is in a second.
        seconds = max(1.0, now - late[0][0]) if late else 1.0
        return FreeRequests(sum(slot[1] for slot in slots), sum(slot[2] for slot in slots), accepted / seconds)
