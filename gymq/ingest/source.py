"""Sources: the name of a place with tasks, the producer that reads it, and the fingerprint of its data."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gymq import plugins
from gymq.errors import DataError, UnknownName, UsageError
from gymq.wire.json_types import JsonObject

#: The producers of files, by suffix.
SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json.gz": "jsonl",
    ".parquet": "parquet",
}

#: Files that mark a folder as saved by `datasets`.
_SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")

#: Inode, size and mtime (ns) of files at their fingerprint: rows of another state of the file belong to another run.
_fingerprinted: dict[str, tuple[int, int, int] | None] = {}

#: Characters of a source in an error.
_MAX_QUOTED = 200


def open_source(text: str) -> tuple[str, str]:
    """Return the producer of a source.

    Args:
        text: a file, a folder saved by `datasets`, or `producer:source` with an installed producer's name.

    Returns:
        The producer's entry-point name, and its source.

    Raises:
        DataError: the file or folder does not exist.
        UsageError: no producer reads such files.
        UnknownName: the producer is not installed.
    """
    installed = plugins.points(plugins.PRODUCERS)
    prefix, colon, rest = text.partition(":")
    if colon and prefix in installed:
        return prefix, rest
    if not text:
        raise UsageError("--data is empty; name a file, a saved data set, or PRODUCER:SOURCE")
    path = Path(text)
    name = _saved(path) or next((name for suffix, name in SUFFIXES.items() if text.lower().endswith(suffix)), None)
    if not os.path.exists(text):
        quoted = text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "…"
        if colon and prefix.isidentifier():
            raise UnknownName(f"{quoted}: no such file, and no producer {prefix!r}; installed: {', '.join(sorted(installed))}")
        raise DataError(f"{quoted}: no such file or folder; check the path")
    if name is None:
        kinds = ", ".join(SUFFIXES)
        raise UsageError(
            f"{text}: no producer is known for it; name one ({', '.join(sorted(installed))}) as in jsonl:{text}, "
            f"or use a file that ends in {kinds}"
        )
    if name not in installed:
        raise UnknownName(f"unknown producer {name!r}; installed: {', '.join(sorted(installed)) or 'none'}")
    return name, text


def _saved(path: Path) -> str | None:
    # os.path returns False where pathlib raises: for names that are too long, and folders without permission.
    saved = os.path.isdir(path) and any(os.path.exists(path / name) for name in _SAVED)
    return "datasets" if saved else None


def regular(path: str) -> None:
    """Check before it is opened that a path is a plain file: a pipe would block, and a device never ends.

    Args:
        path: the path; links are followed.

    Raises:
        DataError: it is a folder, a pipe or a device.
        OSError: it does not exist or cannot be inspected.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: is no plain file, and rows are read more than once; write them to a file first")


def rows(text: str) -> Iterator[tuple[str, bytes | JsonObject]]:
    """Yield a source's rows, each with its place.

    Args:
        text: as for `open_source`.

    Raises:
        DataError, UsageError, UnknownName: the source cannot be read.
    """
    producer, source = open_source(text)
    before = _fingerprinted.get(os.path.abspath(source), _stamp(source))
    if _stamp(source) == before:
        yield from plugins.load(plugins.PRODUCERS, producer)(source)
    if _stamp(source) != before:
        raise DataError(f"{text}: was changed while it was read; leave it as it is, and begin again with a new run")


def _stamp(source: str) -> tuple[int, int, int] | None:
    """Return inode, size and mtime (ns), which differ once a file was changed; None: it is no file."""
    try:
        status = os.stat(source)
    except (OSError, ValueError):
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def fingerprint(text: str) -> str:
    """Return a digest of a source's data, 16 characters: the same for the same data, wherever it lies.

    Args:
        text: as for `open_source`.

    Raises:
        DataError, UsageError, UnknownName: the source cannot be read.
    """
    producer, source = open_source(text)
    path = Path(source)
    _fingerprinted[os.path.abspath(source)] = _stamp(source)
    digest = hashlib.blake2b(producer.encode(), digest_size=8)
    try:
        if producer in SUFFIXES.values():
            regular(source)
        if os.path.isdir(path):
            for file in sorted(path.rglob("*")):
                if file.is_file():
                    digest.update(str(file.relative_to(path)).encode())
                    _add(digest, file)
        elif os.path.isfile(path):
            _add(digest, path)
        else:
            digest.update(source.encode())
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}; name a file that can be read") from None
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, file: Path) -> None:
    with file.open("rb") as opened:
        digest.update(hashlib.file_digest(opened, "blake2b").digest())
