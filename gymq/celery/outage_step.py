"""The step of every worker that decides what becomes of messages when the broker's connection breaks."""

from __future__ import annotations

# Celery and kombu have no stubs.
# pyright: reportMissingTypeStubs=false
from typing import Any

from celery import bootsteps

#: Celery's base of steps, seen as untyped.
_Step: Any = bootsteps.StartStopStep


class OutageStep(_Step):
    """The step that keeps kombu from giving back messages when the connection breaks.

    Their tasks are still here and run on, so they would run twice; and what kombu cannot give back it would dump, as
    pickle, into a file in /tmp. At an orderly end it gives back what did not begin.
    """

    requires = ("celery.worker.components:Hub",)

    def register_with_event_loop(self, parent: Any, hub: object) -> None:
        """Forbid it on the new connection; Celery calls this on every one.

        Args:
            parent: the worker's consumer.
            hub: its event loop.
        """
        parent.consumer.task_consumer.channel.do_restore = False

    def close(self, parent: Any) -> None:
        """Allow it: Celery is about to stop."""
        if parent.consumer.task_consumer is not None:
            parent.consumer.task_consumer.channel.do_restore = True
