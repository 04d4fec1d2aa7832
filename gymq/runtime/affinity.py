"""The routing policy for replicas: model workers, environment workers with live sessions, and endpoints of one backend.

1. A conversation stays with its holder, the replica that answered last and keeps its prefix (a session: the live object).
2. One without a holder starts where its group does. Rendezvous hashing gives a group the same first replica in all
   processes, and a replica that leaves moves its own groups only.
3. Load comes before both: if the first choice has more calls than the least busy of CHOICES random others, by more than a
   margin, that one gets the call, and holds the conversation from then on.
4. A rollout without a group to share a prefix with starts with margin 0, at the least busy of all that are looked at.
5. A session never moves while its owner lives, for nothing else has its state.

For workers `commit.lua` applies rule 3, with a margin wider by a quarter of the other's calls: only Redis knows who is alive
and how much lies with whom. `EndpointPool` counts its own calls, and applies it itself, by `settle`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence

import msgspec

from gymq.errors import UNREADABLE

#: Calls by which a worker may be ahead before it loses a conversation that it holds, or that its group started there. To
#: move costs a prefill of the whole conversation, to stay a wait behind these calls.
WORKER_MARGIN = 12

#: The same for an endpoint that holds the conversation; each process counts only its own calls, a part of the load.
ENDPOINT_MARGIN = 16

#: The same for an endpoint where a conversation is to start, which has the group's first prompt at most.
ENDPOINT_START_MARGIN = 4

#: Other replicas that are looked at: the less busy of two random ones is nearly as good as the least busy of all.
CHOICES = 2

#: Margin of a worker that must not lose the call, however busy it is: its session is dear to make again.
NEVER_LEAVE = 1 << 30

#: Proposed replicas, the first choice before the others, and its margin; no replicas: the shared mailbox.
Route = tuple[list[str], int]

_decoder = msgspec.json.Decoder(list[str])


def propose(
    names: Sequence[str], holder: str, group: str, *, margin: int, start_margin: int, chance: random.Random | None = None
) -> Route:
    """Return the replicas to choose from and the margin of the first: rules 1 and 2.

    Args:
        names: the replicas that can take the call, at least one.
        holder: the replica that holds the conversation; any other text: none of them does.
        group: the key by which conversations start together.
        margin: calls, of a holder.
        start_margin: calls, of a replica at which the conversation starts.
        chance: the source of the random choices.
    """
    if holder in names:
        first = holder
    else:
        first, margin = max(names, key=lambda name: _rendezvous_rank(group, name)), start_margin
    looked_at = (chance or random).sample(names, min(CHOICES + 1, len(names)))
    return [first, *[name for name in looked_at if name != first][:CHOICES]], margin


def settle(route: Route, load: Callable[[str], int]) -> str:
    """Return the replica that gets the call: rule 3.

    Args:
        route: what `propose` returned.
        load: calls in flight at a replica.
    """
    (first, *others), margin = route
    least = min(others, key=load, default=first)
    return least if load(first) - load(least) > margin else first


def _rendezvous_rank(key: str, name: str) -> bytes:
    """Return the rank of a name for a key: each key orders the names anew, and all processes order them alike."""
    return hashlib.blake2b(f"{key} {name}".encode(), digest_size=8).digest()


class AffinityRouter:
    """The workers that have private mailboxes, and the routes to them.

    Args:
        private: workers' names and the mailboxes that each one's private mailbox is open for (JSON), in turn, as in Redis.
    """

    def __init__(self, private: Sequence[bytes] = ()) -> None:
        self._workers: dict[str, list[str]] = {}
        for worker, mailboxes in zip(private[::2], private[1::2], strict=True):
            try:
                for mailbox in _decoder.decode(mailboxes) if mailboxes else ():
                    self._workers.setdefault(mailbox, []).append(worker.decode())
            except UNREADABLE:
                continue  # no worker wrote it

    def knows(self, mailbox: str) -> bool:
        """Return whether a worker has a private mailbox for this one."""
        return mailbox in self._workers

    def conversation(self, mailbox: str, owner: str, group: str, samples: int) -> Route:
        """Return the route of a conversation's next call.

        Args:
            mailbox: the model's.
            owner: the worker that answered last; empty: none yet.
            group: the rollout's group.
            samples: rollouts of the group.
        """
        workers = self._workers.get(mailbox)
        if not workers:
            return [], 0
        start_margin = WORKER_MARGIN if samples > 1 else 0
        return propose(workers, owner, group, margin=WORKER_MARGIN, start_margin=start_margin)

    def session(self, mailbox: str, owner: str, rollout: str, calls: int) -> Route:
        """Return the route of calls that need a live session: its owner, else one and the same worker for all of them.

        Args:
            mailbox: the environment's.
            owner: the worker that has the session; empty: none yet.
            rollout: the rollout's id.
            calls: how many calls there are.
        """
        workers = self._workers.get(mailbox)
        if not workers:
            return [], 0
        if owner in workers:
            return [owner], NEVER_LEAVE
        if calls < 2:
            return [], 0  # any worker with room takes it from the shared mailbox
        return propose(workers, "", rollout, margin=0, start_margin=0)
