"""The base of events, and the way from those who emit them to those who tell of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

log = logging.getLogger(__name__)


class Event(msgspec.Struct, frozen=True, gc=False):
    """Base of all events."""


E = TypeVar("E", bound=Event)


_subscribers: dict[type[Event], tuple[Callable[[Any], None], ...]] = {}


def subscribe(kind: type[E], subscriber: Callable[[E], None]) -> None:
    """Have a function called with each event of a kind, in the thread that emits it.

    Args:
        kind: the event's class.
        subscriber: the function; it must be quick, and may be called from several threads.
    """
    _subscribers[kind] = (*_subscribers.get(kind, ()), subscriber)


def unsubscribe(subscriber: Callable[[Any], None]) -> None:
    """Call a function no more, whatever kinds it was subscribed to."""
    for kind, subscribers in list(_subscribers.items()):
        # Bound methods are made anew at each access: equal, not identical.
        _subscribers[kind] = tuple(one for one in subscribers if one != subscriber)


def wanted(kind: type[Event]) -> bool:
    """Return whether events of a kind have a subscriber: what is costly to gather need not be gathered for none."""
    return bool(_subscribers.get(kind))


def emit(event: Event) -> None:
    """Hand an event to its subscribers; what a subscriber raises is logged and goes no further."""
    for subscriber in _subscribers.get(type(event), ()):
        try:
            subscriber(event)
        except Exception:
            log.exception("a subscriber to %s failed", type(event).__name__)
