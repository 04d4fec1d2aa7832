"""Arrow tables, as rows of JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

#: What JSON cannot say becomes text.
_encoder = msgspec.json.Encoder(enc_hook=str)

#: Rows decoded at a time: enough to spread the cost of a batch, few enough that rows with images fit in memory.
BATCH_ROWS = 256


def rows(table: Any, where: str, start: int) -> Iterator[tuple[str, bytes]]:
    """The rows of an Arrow table or record batch.

    Args:
        table: a `pyarrow.Table` or `pyarrow.RecordBatch`.
        where: the file's name.
        start: the index of the table's first row in the file.
    """
    for index, row in enumerate(table.to_pylist(), start):
        # Dates become ISO text, decimals text, bytes base64, NaN null; parse_row then finds plain JSON.
        yield f"{where}:{index + 1}", _encoder.encode(row)
