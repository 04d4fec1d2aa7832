"""Conversion of Arrow tables into rows of JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

#: Values without a form in JSON become text.
_encoder = msgspec.json.Encoder(enc_hook=str)

#: Rows decoded at once: enough to spread the cost of a batch, few enough that rows with images fit in memory.
BATCH_ROWS = 256


def rows(table: Any, where: str, start: int) -> Iterator[tuple[str, bytes]]:
    """Yield the rows of an Arrow table or record batch, each with its place.

    Args:
        table: a `pyarrow.Table` or `pyarrow.RecordBatch`.
        where: the file's name.
        start: the index of the table's first row in the file.
    """
    for index, row in enumerate(table.to_pylist(), start):
        # Dates become ISO text, decimals text, bytes base64, NaN null; parse_row then finds plain JSON.
        yield f"{where}:{index + 1}", _encoder.encode(row)
