"""The HTTP server of `/metrics` and health: in a thread, or on Celery's loop in a process that must have no other thread."""

from __future__ import annotations

import threading
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from gymq.errors import UsageError
from gymq.observe.health import Health, with_health

#: Seconds that a client may take for its request: one that says nothing must not hold up the loop.
CLIENT_LIMIT = 1.0

_HEALTHY = Health()


class _Handler(WSGIRequestHandler):
    """Answers one request, and logs none."""

    timeout = CLIENT_LIMIT

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape every few seconds is no news."""


class _Server(WSGIServer):
    """A server that answers one request after the other."""

    def server_bind(self) -> None:
        """Bind without looking up the host's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _ThreadingServer(ThreadingMixIn, _Server):
    """A server with a thread for each request."""

    daemon_threads = True


class MetricsServer:
    """Serves a registry at `/metrics`, and the process's health; it listens from the moment it is made.

    Args:
        registry: the metrics.
        host: where it listens.
        port: the port; 0: any free one.
        threads: False: its maker calls `handle` when `fileno` can be read.
        health: what it answers at `/healthz` and `/readyz`.

    Raises:
        UsageError: it cannot listen there.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        threads: bool = True,
        health: Health = _HEALTHY,
    ) -> None:
        kind = _ThreadingServer if threads else _Server
        try:
            self._server = kind((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"metrics: nothing can listen at {host}:{port}: {reason}; choose another port, or 0 for any free one"
            ) from None
        self._server.set_app(with_health(make_wsgi_app(registry), health))
        self._server.timeout = 0
        self.address = f"http://{host}:{self._server.server_port}/metrics"
        if threads:
            threading.Thread(target=self._server.serve_forever, name="gymq-metrics", daemon=True).start()

    def fileno(self) -> int:
        """Return the descriptor that can be read when a request has come."""
        return self._server.fileno()

    def handle(self) -> None:
        """Answer a request that has come."""
        self._server.handle_request()

    def close(self) -> None:
        """Close the listening socket."""
        self._server.server_close()
