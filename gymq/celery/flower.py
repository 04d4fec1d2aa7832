"""Flower as gymq serves it: it shows workers and rollouts, changes nothing, and says nothing without the password.

It is made here and not by Flower's command line, which executes a `flowerconfig.py` of the working directory, and opens
`/metrics` and `/healthcheck` to everybody who reaches the port: other users of the machine, too.
"""

from __future__ import annotations

# Celery and Flower have no stubs.
# pyright: reportMissingTypeStubs=false
import errno
import hmac
import ipaddress
import signal
import sys
from base64 import b64encode
from typing import Any

import flower.app
import flower.urls
from flower.options import options
from flower.views.error import NotFoundErrorHandler
from tornado.web import RequestHandler

from gymq.celery import app
from gymq.errors import UsageError

#: The name with which people log in.
USER = "gymq"

#: Where it listens: on this machine only.
ADDRESS = "127.0.0.1"

OPTIONS: dict[str, object] = {
    # Flower would switch on task events in every worker every 5 s; ours send those that are meant to be seen.
    "enable_events": False,
    "read_only": True,
    # A rollout's result tells its reward, its exception why it failed.
    "tasks_columns": "name,uuid,state,result,exception,received,runtime,worker",
    # Tasks that Flower keeps in memory; older ones go first.
    "max_tasks": 20_000,
    # Seconds after which a worker that went away is no longer shown.
    "purge_offline_workers": 60,
}

#: Flower's application, seen as untyped.
_Flower: Any = flower.app.Flower


class _Stranger(RequestHandler):
    """The answer to a request by a name that is not this machine's: the page of another site may have led there."""

    def check_xsrf_cookie(self) -> None:
        """Leave the refusal to `prepare`."""

    def prepare(self) -> None:
        """Refuse."""
        self.set_status(403)
        self.finish("Ask by localhost or an address")


class _Refusal(RequestHandler):
    """The answer to a request without the password."""

    def check_xsrf_cookie(self) -> None:
        """Leave the refusal to `prepare`."""

    def prepare(self) -> None:
        """Refuse."""
        self.set_status(401)
        self.set_header("WWW-Authenticate", f'Basic realm="{USER}"')
        self.finish("Access denied")


def _is_address(host: str) -> bool:
    """Return whether a request's host is `localhost` or an address, which no owner of a name can turn to another machine."""
    if host.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


class Flower(_Flower):
    """Flower on a port of this machine, from when it is made until it is told to end.

    Args:
        port: where it listens.
        password: what it asks for on every path: other users of the machine reach the port, too, and could read every task.

    Raises:
        UsageError: something else listens there.
    """

    def __init__(self, port: int, password: str) -> None:
        credentials = f"{USER}:{password}"
        own = {"port": port, "address": ADDRESS, "basic_auth": [credentials]}
        for name, value in (OPTIONS | own).items():
            setattr(options, name, value)
        self._authorization = b"Basic " + b64encode(credentials.encode())
        settings = flower.urls.settings | {"cookie_secret": options.cookie_secret, "log_function": lambda _: None}
        super().__init__(capp=app, options=options, **settings)
        # They would count a sample of the rollouts, and say that they count all.
        self.add_handlers(".*", [("/metrics", NotFoundErrorHandler)])
        try:
            self.start_http_server()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise UsageError(f"--port {port}: another process listens there; name another port") from None

    def find_handler(self, request: Any, **arguments: Any) -> Any:
        """Return what answers a request: a refusal, whatever its path, unless it brings the password and asks by an address.

        The owner of a name may let it stand for this machine (DNS rebinding), and then a page of his reads what a browser
        shows that has the password; he has no say over addresses and `localhost`.

        Args:
            request: Tornado's.
            arguments: Tornado's.
        """
        if not _is_address(request.host_name):
            return self.get_handler_delegate(request, _Stranger)
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self._authorization):
            return self.get_handler_delegate(request, _Refusal)
        return super().find_handler(request, **arguments)

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            self.start()
        except (KeyboardInterrupt, SystemExit):
            pass
        finally:
            self.stop()
