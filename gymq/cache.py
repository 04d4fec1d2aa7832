"""Caches of what actors have read and made, bounded by bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cachetools import LRUCache

T = TypeVar("T")

#: Bytes that one cache keeps: a few thousand conversations of usual length.
BUDGET = 256 << 20


def byte_cache(weigh: Callable[[T], float], budget: int = BUDGET) -> LRUCache[str, T]:
    """Return a cache of the most recently used entries; an entry heavier than the budget is kept alone.

    Args:
        weigh: returns an entry's bytes, once as it is put.
        budget: bytes of all entries.
    """
    return LRUCache(budget, getsizeof=lambda entry: min(budget, weigh(entry)))
