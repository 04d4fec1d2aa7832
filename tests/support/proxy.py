"""A TCP proxy that can be cut: what a network does to a connection."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """Forwards a port of its own to another one, until it is cut; then it breaks all connections and refuses new ones.

    Args:
        port: where to.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener: socket.socket | None = None
        self._pairs: set[socket.socket] = set()
        self.port = 0
        self.mend()

    def mend(self) -> None:
        """Forward, from now on, on the same port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(100)
        self.port, self._listener = listener.getsockname()[1], listener
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()

    def cut(self) -> None:
        """Break everything."""
        assert self._listener is not None
        # A thread that waits in accept() is not woken by close().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._pairs):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                if listener.fileno() < 0:
                    return
                continue
            self._pairs |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=[source, sink], daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            self._pairs.discard(one)
