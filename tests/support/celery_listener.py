"""Celery's events, as any monitor hears them."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

from celery import Celery
from redis.exceptions import ConnectionError


class CeleryListener:
    """Hears all events of a server, from now on."""

    def __init__(self, url: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._app = Celery("listener", broker=url, set_as_current=False)
        self._receiver: Any = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def of(self, uuid: str) -> list[dict[str, Any]]:
        """Return the events of a task."""
        return [event for event in self.events if event.get("uuid") == uuid]

    def kinds(self, **fields: object) -> list[str]:
        """Return the types of the events that have these fields."""
        return [event["type"] for event in self.events if fields.items() <= event.items()]

    def stop(self) -> None:
        """Hear no more."""
        self._receiver.should_stop = True
        self._thread.join(5)

    def _listen(self) -> None:
        # The server ends with the test session, while this thread may still listen.
        with suppress(ConnectionError), self._app.connection_for_read() as connection:
            self._receiver = self._app.events.Receiver(connection, handlers={"*": self.events.append})
            self._ready.set()
            self._receiver.capture(limit=None, timeout=None, wakeup=False)
