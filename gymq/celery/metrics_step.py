"""The step of every worker that serves its metrics, if its settings name a port."""

from __future__ import annotations

# Celery and kombu have no stubs.
# pyright: reportMissingTypeStubs=false
import logging
from typing import Any, Protocol

from celery import bootsteps, signals

from gymq.celery.queues import EXECUTOR
from gymq.observe.health import Health
from gymq.observe.metrics import ProcessMetrics
from gymq.observe.metrics_server import MetricsServer
from gymq.settings import Settings
from gymq.store.topology import parse

log = logging.getLogger(__name__)

#: Celery's base of steps, seen as untyped.
_Step: Any = bootsteps.StartStopStep


class Hub(Protocol):
    """Celery's event loop."""

    def add_reader(self, fd: int, callback: Any) -> None:
        """Call `callback` when a descriptor can be read.

        Args:
            fd: the descriptor.
            callback: called without arguments.
        """
        ...


class MetricsStep(_Step):
    """The step that serves `/metrics`. An executor forks and must have no other threads: it answers on Celery's loop.

    Args:
        worker: Celery's worker.
        role: the worker's role.

    Raises:
        UsageError: nothing can listen at the port.
    """

    requires = ("celery.worker.components:Hub", "gymq.celery.actor_step:ActorStep", "gymq.celery.executor_step:DrainStep")

    def __init__(self, worker: Any, role: str | None = None, **_: object) -> None:
        settings = Settings.from_environment()
        self.enabled = settings.metrics_port is not None
        self._settings = settings
        self._on_loop = role == EXECUTOR
        self._server: MetricsServer | None = None

    def create(self, parent: Any) -> None:
        """Listen, before the worker takes work."""
        metrics = ProcessMetrics(len(parse(self._settings.redis_url)))
        metrics.watch(parent.gymq.gauges)
        assert self._settings.metrics_port is not None
        host, port = self._settings.metrics_host, self._settings.metrics_port
        health = Health(parent.gymq.alive, lambda: parent.gymq.gauges().taking)
        self._server = MetricsServer(metrics.registry, host, port, threads=not self._on_loop, health=health)
        if self._on_loop:
            signals.worker_process_init.connect(self._in_child, weak=False)
        log.info("metrics at %s", self._server.address)

    def start(self, parent: object) -> None:
        """Do nothing more: it has listened since it was made."""

    def stop(self, parent: object) -> None:
        """Serve on: the process ends soon."""

    def register_with_event_loop(self, parent: object, hub: Hub) -> None:
        """Answer on the loop, if threads must not; Celery calls this on every connection.

        Args:
            parent: the worker's consumer.
            hub: its event loop.
        """
        if self._server is not None and self._on_loop:
            hub.add_reader(self._server.fileno(), self._server.handle)

    def _in_child(self, **_: object) -> None:
        # A child that outlives the executor must not keep its port.
        if self._server is not None:
            self._server.close()
