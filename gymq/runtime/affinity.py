"""Where a call is sent whose worker should be one that knows the rollout: a replica that holds its prefix, or its live session.

Agents propose, `commit.lua` decides: only there it is known who is alive now, and how much lies with whom.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import msgspec

from gymq.errors import UNREADABLE

#: Calls by which a replica may be ahead of the least busy other one that was looked at, and a quarter of what that one has,
#: before a conversation leaves it. A move costs a prefill of the whole conversation, a wait behind a few calls more.
MARGIN = 12

#: Other replicas that are looked at: the less busy of two random ones is nearly as good as the least busy of all.
CHOICES = 2

#: Margin of who must not be left for being busy: what only they have is dear to make again.
NEVER = 1 << 30

#: Workers whose private mailboxes are preferred, the first before the others, and by how much; empty: the shared mailbox.
Route = tuple[list[str], int]

_decoder = msgspec.json.Decoder(list[str])


class AffinityRouter:
    """The workers that have private mailboxes.

    Args:
        found: workers and what each one's private mailbox is open for, as they stand in Redis: names and values in turn.
    """

    def __init__(self, found: Sequence[bytes] = ()) -> None:
        self._workers: dict[str, list[str]] = {}
        for worker, boxes in zip(found[::2], found[1::2], strict=True):
            try:
                for box in _decoder.decode(boxes) if boxes else ():
                    self._workers.setdefault(box, []).append(worker.decode())
            except UNREADABLE:
                continue  # no worker wrote it

    def knows(self, mailbox: str) -> bool:
        """Whether anybody has a private mailbox for this one."""
        return mailbox in self._workers

    def conversation(self, mailbox: str, owner: str, group: str, samples: int) -> Route:
        """Where the next call of a conversation goes: it stays where it was, and starts where its group does.

        Args:
            mailbox: the model's.
            owner: who answered last; empty: nobody yet.
            group: the rollout's group.
            samples: rollouts of the group.
        """
        workers = self._workers.get(mailbox)
        if not workers:
            return [], 0
        margin = MARGIN
        if owner not in workers:
            owner = max(workers, key=lambda worker: rendezvous_rank(group, worker))
            # One that has no prefix yet follows its group, and nothing holds it if it is alone.
            margin = MARGIN if samples > 1 else 0
        return [owner, *self._others(workers, owner)], margin

    def session(self, mailbox: str, owner: str, rollout: str, calls: int) -> Route:
        """Where calls go that ask for a live session: to its owner; else to anybody, but all to the same.

        Args:
            mailbox: the environment's.
            owner: who has the session; empty: nobody yet.
            rollout: the rollout's id.
            calls: how many calls there are.
        """
        workers = self._workers.get(mailbox)
        if not workers:
            return [], 0
        if owner in workers:
            return [owner], NEVER
        if calls < 2:
            return [], 0  # whoever has room takes it from the shared mailbox
        first = max(workers, key=lambda worker: rendezvous_rank(rollout, worker))
        return [first, *self._others(workers, first)], 0

    def _others(self, workers: list[str], but: str) -> list[str]:
        if len(workers) <= CHOICES + 1:
            return [worker for worker in workers if worker != but]
        found: set[str] = set()
        while len(found) < CHOICES:
            found.add(random.choice(workers))
            found.discard(but)
        return sorted(found)


def rendezvous_rank(key: str, name: str) -> bytes:
    """What orders names for a key, the highest first: each key has an order of its own (rendezvous hashing).

    All processes find the same one, and a name that leaves moves only its own keys.

    Args:
        key: whose order it is: a group, a rollout.
        name: what is ordered: a worker, a server.
    """
    return hashlib.blake2b(f"{key} {name}".encode(), digest_size=8).digest()
