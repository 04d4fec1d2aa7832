"""Producer of rows from a data set that Hugging Face `datasets` saved with `save_to_disk`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gymq.errors import DataError, UsageError

from . import arrow


def read(source: str, start: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield rows from a saved data set; its files are mapped into memory.

    Args:
        source: the folder; with several splits, the split's folder inside it.
        start: the index of the first row.

    Yields:
        The row's place (`folder:17`, counted from 1) and the row as JSON; images and sounds as their files, in base64.

    Raises:
        DataError: the folder is missing, cannot be read, or holds several splits.
        UsageError: datasets is not installed.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"{source}: is no folder; name one that save_to_disk wrote")
    if (folder / "dataset_dict.json").exists():
        splits = _splits(folder)
        raise DataError(f"{source}: holds the splits {', '.join(splits)}; name one of them: {folder / splits[0]}")
    try:
        import datasets
    except ImportError:
        raise UsageError("reading saved data sets needs datasets; pip install 'gymq[data]'") from None
    _contained(folder)
    try:
        dataset: Any = datasets.load_from_disk(str(folder))
        if start >= len(dataset):
            return
        for batch in dataset.skip(start).with_format("arrow").iter(arrow.BATCH_ROWS):
            yield from arrow.rows(batch, source, start)
            start += batch.num_rows
    except Exception as error:  # the errors of a damaged folder are not documented
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{source}: cannot be read ({reason}); save it again with save_to_disk") from None


def _contained(folder: Path) -> None:
    """Check that the data set names only files inside its folder: `datasets` would read any other, too."""
    try:
        names = [str(file["filename"]) for file in json.loads((folder / "state.json").read_bytes())["_data_files"]]
        outside = [name for name in names if not (folder / name).resolve().is_relative_to(folder.resolve())]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{folder}: its state.json cannot be read; save it again with save_to_disk") from None
    if outside:
        raise DataError(f"{folder}: its state.json names {outside[0][:60]!r}, which lies outside; copy that into the folder")


def _splits(folder: Path) -> list[str]:
    try:
        return list(json.loads((folder / "dataset_dict.json").read_text())["splits"]) or ["none"]
    except (OSError, ValueError, KeyError, TypeError):
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) or ["none"]
