"""The endpoints of one model: which one gets a call (by the policy of `gymq.runtime.affinity`), and which ones rest.

An endpoint that failed rests, longer with each failure in a row; then it gets one call at a time until it answers. A pool
has no clock and no connection of its own.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from cachetools import LRUCache

from gymq.backoff import backoff
from gymq.runtime.affinity import ENDPOINT_MARGIN, ENDPOINT_START_MARGIN, propose, settle
from gymq.wire.ids import RolloutId

#: Seconds that an endpoint rests after a failure; doubled with each further one.
FIRST_REST = 1.0

#: Seconds that it rests at most: an endpoint that is back is noticed within this.
LONGEST_REST = 30.0


class EndpointPool:
    """The endpoints, by number.

    Args:
        names: their names, the same in all workers.
        size: conversations whose endpoint is remembered, 200 bytes each.
        chance: the source of random choices.
    """

    def __init__(self, names: list[str], size: int, chance: random.Random | None = None) -> None:
        self._names = names
        self._numbers = {name: number for number, name in enumerate(names)}
        self._chance = chance or random.Random()
        self._holders: LRUCache[str, int] = LRUCache(size)
        self._failures = [0] * len(names)
        self._failed_at = [0.0] * len(names)
        #: Calls in flight.
        self.load = [0] * len(names)

    def choose(self, rollout: str, now: float, tried: Collection[int] = ()) -> int:
        """Return the endpoint of a call; `began` and `ended` count the calls in flight.

        Args:
            rollout: the id of the conversation's rollout.
            now: seconds, of any clock.
            tried: endpoints on which this call has failed.
        """
        if len(self._names) == 1:
            return 0
        untried = [i for i in range(len(self._names)) if i not in tried]
        usable = [i for i in untried if self.usable(i, now)] or untried or list(range(len(self._names)))
        holder = self._holders.get(rollout)
        route = propose(
            [self._names[i] for i in usable],
            self._names[holder] if holder is not None else "",
            RolloutId.parse(rollout).group,
            margin=ENDPOINT_MARGIN,
            start_margin=ENDPOINT_START_MARGIN,
            chance=self._chance,
        )
        chosen = self._numbers[settle(route, lambda name: self.load[self._numbers[name]])]
        self._holders[rollout] = chosen
        return chosen

    def usable(self, index: int, now: float) -> bool:
        """Return whether an endpoint has not failed, or has rested and no other call is trying it.

        Args:
            index: its number.
            now: seconds.
        """
        failures = self._failures[index]
        if not failures:
            return True
        return now >= self._failed_at[index] + backoff(failures, FIRST_REST, LONGEST_REST) and not self.load[index]

    def began(self, index: int) -> None:
        """Count a call that an endpoint has in flight."""
        self.load[index] += 1

    def ended(self, index: int) -> None:
        """Count it no more."""
        self.load[index] -= 1

    def answered(self, index: int) -> None:
        """Forget an endpoint's failures: it works."""
        self._failures[index] = 0

    def failed(self, index: int, began: float, now: float) -> None:
        """Let an endpoint rest; calls that it had together count as one failure.

        Args:
            index: its number.
            began: when the call was sent to it, seconds.
            now: seconds.
        """
        if not self._failures[index] or began >= self._failed_at[index]:
            self._failures[index] += 1
            self._failed_at[index] = now
