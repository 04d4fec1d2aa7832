"""What an actor keeps of the rollouts it has seen, so that it reads only what is new."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")

#: Bytes of messages that one cache keeps: a few thousand conversations of usual length.
BUDGET = 256 << 20


class Cache(Generic[T]):
    """The most recently used entries, up to a budget of bytes.

    Args:
        budget: bytes; what an entry weighs is said when it is put.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._entries: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._budget = budget
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> T | None:
        """The entry of a key, now the most recently used; or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: str, value: T, weight: int) -> None:
        """Keep an entry of so many bytes, and drop the least recently used beyond the budget."""
        self.drop(key)
        self._entries[key] = (value, weight)
        self.size += weight
        while self.size > self._budget and len(self._entries) > 1:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.size -= dropped

    def drop(self, key: str) -> None:
        """Forget an entry."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size -= entry[1]
