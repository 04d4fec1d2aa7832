"""Which of several servers of one model answers a call: a policy without a clock or a connection of its own.

A server keeps the prefixes that it has seen, so a conversation stays where it is, and the samples of a group begin on the
same one, which all workers find by the same hash. Load comes before that: who is much busier than another, chosen at
random, loses the call to it. Who failed is left alone for a while; then one call at a time tries it.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection

from gymq.runtime.affinity import rendezvous_rank
from gymq.wire.ids import RolloutId

#: Calls that the first choice of a new conversation may have more in flight than another before that gets it.
SLACK_NEW = 4

#: The same for a conversation that is there already: moving costs its whole prefix.
SLACK_KEPT = 16

#: Seconds that a server is left alone after a failure; doubled with each further one.
FIRST_REST = 1.0

#: Seconds that it is left alone at most: when it is back, that is noticed within this.
LONGEST_REST = 30.0


class EndpointPool:
    """The servers, by number.

    Args:
        names: what tells them apart, the same in all workers.
        size: conversations that are remembered, 200 bytes each.
        chance: makes the random choices.
    """

    def __init__(self, names: list[str], size: int, chance: random.Random | None = None) -> None:
        self._names = names
        self._size = size
        self._chance = chance or random.Random()
        self._kept: OrderedDict[str, int] = OrderedDict()
        self._failures = [0] * len(names)
        self._failed_at = [0.0] * len(names)
        #: Calls in flight.
        self.load = [0] * len(names)

    def choose(self, rollout: str, now: float, tried: Collection[int] = ()) -> int:
        """The server of a call; `began` and `ended` say how long it is busy with it.

        Args:
            rollout: whose conversation it is, `run.row.sample`.
            now: seconds, of any clock.
            tried: servers on which this call has failed.
        """
        if len(self._names) == 1:
            return 0
        untried = [i for i in range(len(self._names)) if i not in tried]
        usable = [i for i in untried if self.usable(i, now)] or untried or list(range(len(self._names)))
        kept = self._kept.get(rollout)
        chosen = kept if kept in usable else self._home(rollout, usable)
        assert chosen is not None
        others = [i for i in usable if i != chosen]
        if others:
            other = min(self._chance.sample(others, min(2, len(others))), key=self.load.__getitem__)
            if self.load[chosen] - self.load[other] > (SLACK_KEPT if chosen == kept else SLACK_NEW):
                chosen = other
        self._kept[rollout] = chosen
        self._kept.move_to_end(rollout)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return chosen

    def usable(self, index: int, now: float) -> bool:
        """Whether a server is not left alone: it has not failed, or has rested, and nobody else is trying it.

        Args:
            index: which server.
            now: seconds.
        """
        failures = self._failures[index]
        if not failures:
            return True
        rest = min(LONGEST_REST, FIRST_REST * 2.0 ** (min(failures, 10) - 1))
        return now >= self._failed_at[index] + rest and not self.load[index]

    def began(self, index: int) -> None:
        """A server is busy with a call."""
        self.load[index] += 1

    def ended(self, index: int) -> None:
        """It is not any more."""
        self.load[index] -= 1

    def answered(self, index: int) -> None:
        """A server works."""
        self._failures[index] = 0

    def failed(self, index: int, began: float, now: float) -> None:
        """A server failed; calls that were with it together count as one.

        Args:
            index: which server.
            began: when the call was sent to it, seconds.
            now: seconds.
        """
        if not self._failures[index] or began >= self._failed_at[index]:
            self._failures[index] += 1
            self._failed_at[index] = now

    def _home(self, rollout: str, usable: list[int]) -> int:
        """Where the samples of a group begin; of several servers one that leaves takes none of the others' groups along."""
        group = RolloutId.parse(rollout).group
        return max(usable, key=lambda i: rendezvous_rank(group, self._names[i]))
