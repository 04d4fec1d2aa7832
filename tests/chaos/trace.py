"""Why calls ran again: all hand-backs and all begun isolated calls of a run, as Redis's MONITOR shows them."""

from __future__ import annotations

import ast
import re
import socket
import threading
from collections import defaultdict
from contextlib import suppress
from hashlib import sha1
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gymq.ops.victims import work_item
from gymq.store import scripts
from gymq.wire.ids import place

_HANDBACK = sha1(scripts.hand_back("", 0, scripts.HandBackReason.DEAD, []).source, usedforsecurity=False).hexdigest().encode()

_ARGUMENT = re.compile(rb'"(?:[^"\\]|\\.)*"')


class Moved(msgspec.Struct):
    """A call or step that went from one worker back to the mailboxes, or an isolated call that an executor began.

    Args:
        at: seconds since the epoch.
        worker: whose mail was handed back; or the executor.
    """

    at: float
    worker: str

    @property
    def pid(self) -> int:
        """The worker's process."""
        return int(self.worker.rsplit("-", 2)[1])


class Trace:
    """Listens to one server until it is closed.

    Args:
        url: where it is.
    """

    def __init__(self, url: str) -> None:
        self.back: dict[str, list[Moved]] = defaultdict(list)
        self.begun: dict[str, list[Moved]] = defaultdict(list)
        self._worker = ""
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "localhost", parts.port or 6379))
        self._lines = self._socket.makefile("rb")
        for command in ([f"AUTH {parts.password}"] if parts.password else []) + ["MONITOR"]:
            self._socket.sendall(f"{command}\r\n".encode())
            assert self._lines.readline() == b"+OK\r\n"
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take what has arrived, and end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        with self._lines:
            for line in self._lines:
                # What a script does follows its call; nothing else can come between.
                if b' lua] "' not in line[:40]:
                    self._worker = _arguments(line)[4].decode() if _HANDBACK in line[:150] else ""
                elif self._worker and b'"XADD"' in line[:50]:
                    self._note(self.back, line, work_item(_arguments(line)[3:]), self._worker)
                elif b':isolated" ' in line[:70] and b'"HSET"' in line[:50]:
                    _, _, call, executor = _arguments(line)
                    self._note(self.begun, line, call.decode(), executor.decode())

    def _note(self, where: dict[str, list[Moved]], line: bytes, what: str, worker: str) -> None:
        where[place(what)].append(Moved(float(line[1 : line.index(b" ")]), worker))


def _arguments(line: bytes) -> list[Any]:
    # What Redis escapes, Python reads.
    return [ast.literal_eval(f"b{one.decode('latin-1')}") for one in _ARGUMENT.findall(line)]
