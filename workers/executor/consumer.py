"""Celery's consumer, as an executor needs it: it stays alive for others while it waits for Redis to come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer

from .parent import current


class ExecutorConsumer(Consumer):  # type: ignore[misc]
    """Celery's own waits up to 30 s between two tries, and its loop, whose timers renew the liveness, stands still meanwhile.

    The children work on; when Redis is back before this side notices, others would take them for dead and run their
    calls again.
    """

    def ensure_connected(self, conn: Any) -> Any:
        """Try once a second, and renew the liveness as soon as that is possible."""
        ensure = conn.ensure_connection

        def patient(*arguments: Any, callback: Callable[[], None] | None = None, **rest: Any) -> Any:
            def between() -> None:
                if callback is not None:
                    callback()
                current().renew()

            rest |= {"interval_start": 1, "interval_step": 1, "interval_max": 1}
            return ensure(*arguments, callback=between, **rest)

        conn.ensure_connection = patient
        return super().ensure_connected(conn)
