"""Producer of rows from JSON Lines: one JSON object per line, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from gymq.errors import DataError
from gymq.ingest.source import regular

#: Bytes of one line: enough for a row with images. A longer line is a file of another kind, and must not fill the memory.
MAX_LINE = 256 * 2**20

_BOM = b"\xef\xbb\xbf"
#: First bytes of files, whatever their names.
_GZIP = b"\x1f\x8b"
_OTHERS = {
    b"PAR1": "Parquet",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zX": "compressed with xz",
    b"PK\x03\x04": "a zip archive",
}

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read(source: str, start: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield rows from a file, line by line; empty lines do not count.

    Args:
        source: the path of a `.jsonl`, `.json` or `.jsonl.gz` file.
        start: the index of the first row.

    Yields:
        The row's place (`rows.jsonl:17`) and its line.

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


@contextmanager
def _open(source: str) -> Iterator[IO[bytes]]:
    regular(source)
    with open(source, "rb") as file:
        head = file.read(4)
        file.seek(0)
        if head.startswith(_GZIP):
            with gzip.open(file, "rb") as unpacked:
                yield unpacked  # type: ignore[misc]
            return
        for magic, kind in _OTHERS.items():
            if head.startswith(magic):
                raise DataError(f"{source}: is {kind}; make it JSON Lines, plain or gzipped")
        yield file


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
