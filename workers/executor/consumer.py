"""Celery's consumer with an executor's patience: it renews its liveness as soon as Redis is back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.worker.consumer import Consumer

from .parent import current

if TYPE_CHECKING:
    pass


class ExecutorConsumer(Consumer):  # type: ignore[misc]
    """A consumer that reconnects once a second.

    Celery's own waits up to 30 s between two tries, and its loop, whose timers renew the liveness, stands still meanwhile.
    Its children work on: once Redis is back, resource workers would take them for dead and have their calls run again.
    """

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, with one try a second and a renewal of the liveness after each."""
        ensure = conn.ensure_connection

        def patient(*arguments: Any, callback: Callable[[], None] | None = None, **options: Any) -> Any:
            def between() -> None:
                if callback is not None:
                    callback()
                current().renew()

            options |= {"interval_start": 1, "interval_step": 1, "interval_max": 1}
            return ensure(*arguments, callback=between, **options)

        conn.ensure_connection = patient
        return super().ensure_connected(conn)
