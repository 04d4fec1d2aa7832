"""The place that a file sink writes to: a host, and a path on it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NamedTuple, Self


class Place(NamedTuple):
    """A place; as text `host:path`. Two hosts may mean the same file by it, or two files.

    Args:
        host: the host's name.
        path: the absolute path.
    """

    host: str
    path: str

    @classmethod
    def here(cls, path: Path) -> Self:
        """Return the place of a path on this host."""
        return cls(socket.gethostname(), str(path.absolute()))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split the text."""
        host, _, path = text.partition(":")
        return cls(host, path)

    def __str__(self) -> str:
        return f"{self.host}:{self.path}"
