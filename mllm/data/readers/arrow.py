"""Rows of an Arrow file, as `datasets` saves and caches them. Images held in it become references, as those of parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mllm.data.readers.errors import OnError
from mllm.data.readers.fields import without_nulls
from mllm.errors import UserError
from mllm.media.ref import ARROW, arrow_batches, media_columns, parquet_reference


def read_arrow(path: Path, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) pairs. Of the columns that hold the bytes of images (`media_columns`) only how many a row has is read."""
    try:
        batches = arrow_batches(str(path))
        row = 0
        for batch in batches:
            held = media_columns(batch.schema, "parquet")
            others = batch.drop_columns(list(held)) if held else batch
            counts = {name: _counts(batch.column(name)) for name in held}
            for place, record in enumerate(others.to_pylist()):
                for first, name in enumerate(held):
                    record[name] = [
                        parquet_reference(str(path), row, first + n, ARROW) for n in range(counts[name][place])
                    ]
                yield f"{path}[{row}]", without_nulls(record)
                row += 1
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Arrow file: {error}") from None


def _counts(column: pa.Array) -> list[int]:
    """How many images each row of a column has."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pc.fill_null(pc.list_value_length(column), 0).to_pylist()
    return pc.cast(pc.is_valid(column), pa.int32()).to_pylist()
