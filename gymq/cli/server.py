"""`gymq server`: the embedded server by itself, for workers in processes of their own."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from gymq.observe.terminal import say


@click.command()
@click.option("--folder", metavar="DIR", required=True, help="Where its data and its address lie; what is there is continued.")
@click.option("--host", metavar="NAME", help="A name or address of this machine by which others reach it.  [default: a socket]")
def server(folder: str, host: str | None) -> None:
    """Run the server that comes with gymq, its data in a folder that is yours alone.

    Its address is in DIR/server.url. Ctrl-C stops it; the data stays. It listens at the socket DIR/server.sock, which no
    other user reaches; with --host at a port of that address and of loopback, with a password and without TLS: for a network
    that you trust.

    \b
    Examples:
      gymq server --folder out/server
      gymq server --folder /shared/server --host $(hostname)
      export GYMQ_REDIS_URL=$(cat out/server/server.url)
    """
    from gymq.errors import GymqError
    from gymq.process.embedded_redis import EmbeddedRedis

    path = Path(folder)
    stop = threading.Event()

    def ask(*_: object) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    with EmbeddedRedis(path, host) as running:
        say(f"listening; export GYMQ_REDIS_URL=$(cat {path / 'server.url'})")
        # A wait in slices: a signal's handler runs between two of them.
        while not stop.wait(0.5):
            if not running.alive:
                raise GymqError(f"the server ended; {path / 'server.log'} says why")
