"""Sources: how a person names where tasks come from, which producer reads it, and what it holds."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gymq import plugins
from gymq.errors import DataError, UnknownName, UsageError

#: What a file's name ends with, and who reads it.
SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json.gz": "jsonl",
    ".parquet": "parquet",
}

#: Files by which a folder shows that `datasets` saved it.
_SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")


#: How files were when their fingerprint was taken: rows of another state of the file are rows of another run.
_looked_at: dict[str, tuple[int, int, int] | None] = {}

#: Characters of a source that an error repeats.
_MAX_TOLD = 200


def open_source(text: str) -> tuple[str, str]:
    """Pick the producer of a source.

    Args:
        text: a file, a folder that `datasets` saved, or `producer:source` with an installed producer's name.

    Returns:
        The producer's name, as entry points know it, and the source to give it.

    Raises:
        DataError: there is no such file or folder.
        UsageError: no producer is known to read it.
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
        told = text if len(text) <= _MAX_TOLD else text[:_MAX_TOLD] + "…"
        if colon and prefix.isidentifier():
            raise UnknownName(f"{told}: no such file, and no producer {prefix!r}; installed: {', '.join(sorted(installed))}")
        raise DataError(f"{told}: no such file or folder; check the path")
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
    # os.path says False where pathlib raises: names that are too long, folders that we may not enter.
    found = os.path.isdir(path) and any(os.path.exists(path / name) for name in _SAVED)
    return "datasets" if found else None


def regular(path: str) -> None:
    """See that a path is a plain file before it is opened: a pipe would be waited for, a device read for ever.

    Args:
        path: a file that a person named; links are followed.

    Raises:
        DataError: it is something else.
        OSError: there is nothing, or it cannot be looked at.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: is no plain file, and rows are read more than once; write them to a file first")


def rows(text: str) -> Iterator[tuple[str, bytes | dict[str, Any]]]:
    """Read a source's rows, each with its place.

    Args:
        text: as for `open_source`.

    Raises:
        DataError, UsageError, UnknownName: the source cannot be read.
    """
    producer, source = open_source(text)
    before = _looked_at.get(os.path.abspath(source), _stamp(source))
    if _stamp(source) == before:
        yield from plugins.load(plugins.PRODUCERS, producer)(source)
    if _stamp(source) != before:
        raise DataError(f"{text}: was changed while it was read; leave it as it is, and begin again with a new run")


def _stamp(source: str) -> tuple[int, int, int] | None:
    """What tells whether a file was changed; None: it is no file."""
    try:
        found = os.stat(source)
    except (OSError, ValueError):
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def fingerprint(text: str) -> str:
    """Tell what a source holds in 16 characters: the same data has the same ones, wherever it lies.

    Args:
        text: as for `open_source`.

    Raises:
        DataError, UsageError, UnknownName: the source cannot be read.
    """
    producer, source = open_source(text)
    path = Path(source)
    _looked_at[os.path.abspath(source)] = _stamp(source)
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


def _add(digest: Any, file: Path) -> None:
    with file.open("rb") as opened:
        digest.update(hashlib.file_digest(opened, "blake2b").digest())
