"""Rows from JSON Lines: one JSON object per line, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import IO

from gymq.errors import DataError

#: Bytes of one line. A row may hold images; a line beyond this is a file of another kind, and must not fill the memory.
MAX_LINE = 256 * 2**20

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read(source: str, start: int = 0) -> Iterator[tuple[str, bytes]]:
    """Read rows from a file, line by line; empty lines do not count.

    Args:
        source: the path of a `.jsonl`, `.json` or `.jsonl.gz` file.
        start: the index of the first row wanted.

    Yields:
        Where a row stands (`rows.jsonl:17`) and its line.

    Raises:
        DataError: the file is missing, cannot be read, or is not JSON Lines.
    """
    try:
        with _open(source) as file:
            yield from _rows(file, source, start)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{source}: is not a whole gzip file ({error}); copy or compress it again") from None
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}; name a JSON Lines file that can be read") from None


def _open(source: str) -> IO[bytes]:
    return gzip.open(source, "rb") if source.endswith(".gz") else open(source, "rb")  # type: ignore[return-value]


def _rows(file: IO[bytes], source: str, start: int) -> Iterator[tuple[str, bytes]]:
    index = -1
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
        if len(line) > MAX_LINE:
            raise DataError(f"{source}:{number}: the line is longer than {MAX_LINE >> 20} MiB; write one row per line")
        if number == 1:
            if line.startswith(_UTF16):
                raise DataError(f"{source}: is UTF-16; convert it to UTF-8")
            line = line.removeprefix(_BOM)  # noqa: PLW2901 - the mark belongs to the file, not to its first row
        row = line.strip()
        if not row:
            continue
        index += 1
        if index == 0 and row == b"[":
            raise DataError(f"{source}: is one JSON list; write one row per line: jq -c '.[]' {source} > rows.jsonl")
        if index >= start:
            yield f"{source}:{number}", row
