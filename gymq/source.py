"""Sources: how a person names where tasks come from, which producer reads it, and what it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gymq import registry
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
    installed = registry.points(registry.PRODUCERS)
    prefix, colon, rest = text.partition(":")
    if colon and prefix in installed:
        return prefix, rest
    path = Path(text)
    name = _saved(path) or next((name for suffix, name in SUFFIXES.items() if text.lower().endswith(suffix)), None)
    if not path.exists():
        if colon and prefix.isidentifier():
            raise UnknownName(f"{text}: no such file, and no producer {prefix!r}; installed: {', '.join(sorted(installed))}")
        raise DataError(f"{text}: no such file or folder; check the path")
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
    return "datasets" if path.is_dir() and any((path / name).exists() for name in _SAVED) else None


def rows(text: str) -> Iterator[tuple[str, bytes | dict[str, Any]]]:
    """Read a source's rows, each with its place.

    Args:
        text: as for `open_source`.

    Raises:
        DataError, UsageError, UnknownName: the source cannot be read.
    """
    producer, source = open_source(text)
    return registry.load(registry.PRODUCERS, producer)(source)


def fingerprint(text: str) -> str:
    """Tell what a source holds in 16 characters: the same data has the same ones, wherever it lies.

    Args:
        text: as for `open_source`.

    Raises:
        DataError, UsageError, UnknownName: the source cannot be read.
    """
    producer, source = open_source(text)
    path = Path(source)
    digest = hashlib.blake2b(producer.encode(), digest_size=8)
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file():
                    digest.update(str(file.relative_to(path)).encode())
                    _add(digest, file)
        elif path.exists():
            _add(digest, path)
        else:
            digest.update(source.encode())
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}; name a file that can be read") from None
    return digest.hexdigest()


def _add(digest: Any, file: Path) -> None:
    with file.open("rb") as opened:
        digest.update(hashlib.file_digest(opened, "blake2b").digest())
