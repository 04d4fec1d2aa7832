"""Producer of rows from a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator

from gymq.errors import DataError, UsageError
from gymq.ingest.source import regular

from . import arrow


def read(source: str, start: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield rows from a Parquet file, batch by batch.

    Args:
        source: the file's path.
        start: the index of the first row; row groups before it are not read.

    Yields:
        The row's place (`rows.parquet:17`, counted from 1) and the row as JSON.

    Raises:
        DataError: the file is missing, cannot be read, or is not Parquet.
        UsageError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise UsageError("reading Parquet needs pyarrow; pip install 'gymq[data]'") from None
    try:
        regular(source)
        with parquet.ParquetFile(source) as file:
            first, groups = 0, list(range(file.num_row_groups))
            while groups and first + file.metadata.row_group(groups[0]).num_rows <= start:
                first += file.metadata.row_group(groups.pop(0)).num_rows
            for batch in file.iter_batches(arrow.BATCH_ROWS, row_groups=groups) if groups else ():
                skipped = min(max(start - first, 0), batch.num_rows)
                yield from arrow.rows(batch.slice(skipped), source, first + skipped)
                first += batch.num_rows
    except DataError:
        raise
    except Exception as error:  # the errors of a damaged file are not documented
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__
        raise DataError(f"{source}: {reason}; name a Parquet file that can be read") from None
