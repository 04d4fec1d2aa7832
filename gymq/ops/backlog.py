"""Backlog seconds: how long the workers of a mailbox need for what waits in it, at the rate of the last minute."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from gymq.ops.mailboxes import Mailbox
from gymq.ops.stream_flow import Flow

#: Seconds over which the rate is taken: long enough for answers of a slow model, short enough to follow a burst.
RATE_WINDOW = 60.0


class Backlog:
    """Remembers the flows of the last minute.

    Args:
        clock: returns the time in seconds; tests set it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._flows: deque[tuple[float, Mapping[str, Flow]]] = deque()

    def note(self, flows: Mapping[str, Flow]) -> None:
        """Note the flows of now.

        Args:
            flows: by mailbox.
        """
        now = self._clock()
        self._flows.append((now, flows))
        while len(self._flows) > 2 and self._flows[1][0] <= now - RATE_WINDOW:
            self._flows.popleft()

    def rate(self, mailbox: str) -> float:
        """Return the messages that left a mailbox per second; 0: none did, or it is not known.

        Args:
            mailbox: its name.
        """
        if len(self._flows) < 2:
            return 0.0
        (began, first), (ended, last) = self._flows[0], self._flows[-1]
        before, now = first.get(mailbox, Flow()).served, last.get(mailbox, Flow()).served
        # A stream that is new counts from its beginning; one that was made again, or is gone, for nothing.
        served = sum(max(0, count - before.get(stream, 0)) for stream, count in now.items())
        return served / (ended - began) if ended > began else 0.0

    def seconds(self, box: Mailbox) -> float:
        """Return the backlog of a mailbox in seconds.

        It is at least the age of the oldest message that waits: where no worker serves a mailbox it rises second by second.

        Args:
            box: the mailbox, as it is now.
        """
        if not box.waiting:
            return 0.0
        rate = self.rate(box.name)
        return max(box.oldest, box.waiting / rate if rate else 0.0)
