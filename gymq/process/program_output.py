"""The output of a sandboxed program, kept up to a bound."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import IO

#: Bytes kept of stdout and of stderr: far more than a model reads.
OUTPUT = 1024**2

#: Bytes of one read.
CHUNK = 64 * 1024

#: Seconds to read what a pipe still holds at the program's end; a process that escaped may hold it open.
REST_LIMIT = 1.0


class ProgramOutput:
    """One stream of a program's output: kept up to `OUTPUT` bytes, then discarded, so that the program never blocks.

    Args:
        pipe: the pipe's reading end.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._kept = bytearray()
        self._cut = 0
        self._null: int | None = None
        os.set_blocking(pipe.fileno(), False)

    def fileno(self) -> int:
        """Return the pipe's descriptor, for a selector."""
        return self._pipe.fileno()

    def take(self) -> int:
        """Read some bytes and return their number; 0: the pipe was closed."""
        room = OUTPUT - len(self._kept)
        if room > 0:
            data = os.read(self.fileno(), min(CHUNK, room))
            self._kept += data
            return len(data)
        if self._null is None:
            self._null = os.open(os.devnull, os.O_WRONLY)
        # splice moves pages without reading them: gigabytes cost next to nothing.
        cut = os.splice(self.fileno(), self._null, OUTPUT)
        self._cut += cut
        return cut

    def take_rest(self) -> None:
        """Read the bytes that the pipe still holds."""
        until = time.monotonic() + REST_LIMIT
        with suppress(BlockingIOError):
            while self.take() and time.monotonic() < until:
                pass

    def text(self) -> str:
        """Return the kept bytes as text, with a note of the discarded ones."""
        note = f"\n[{self._cut} bytes more were cut]" if self._cut else ""
        return self._kept.decode(errors="replace") + note

    def close(self) -> None:
        """Close the descriptors."""
        self._pipe.close()
        if self._null is not None:
            os.close(self._null)
