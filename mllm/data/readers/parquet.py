"""Rows of a parquet file. Images and videos held in it become references, so that reading rows reads none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mllm.data.readers.errors import OnError
from mllm.data.readers.fields import without_nulls
from mllm.errors import UserError
from mllm.media.ref import MEDIA_COLUMNS, media_columns, parquet_reference

ROWS_AT_ONCE = 256
IMAGES_AT_ONCE = 16


def read_parquet(path: Path, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) pairs. Of the columns of images and videos (`media_columns`) only how many a row has is read, as far as
    that is stored apart from their bytes; where a column that could hold bytes holds paths alone, the paths are read.
    """
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            columns = list(file.schema_arrow.names)
            held: dict[str, tuple[str, int]] = {}  # column → kind of reference, number of its first
            batch_rows = ROWS_AT_ONCE
            for kind, names in MEDIA_COLUMNS.items():
                own = {name: (kind, n) for n, name in enumerate(media_columns(file.schema_arrow, kind))}
                own = {name: reference for name, reference in own.items() if not _holds_no_bytes(file, name)}
                held |= own
                leaves = {name: _path_leaf(file, name) for name in own}
                batch_rows = batch_rows if all(leaves.values()) else IMAGES_AT_ONCE
                # Bytes in another column of the kind would be read for nothing: references are into these.
                unread = {*names, *own} if own else set()
                columns = [name for name in columns if name not in unread]
                columns += [leaf or name for name, leaf in leaves.items()]
            row = 0
            for batch in file.iter_batches(batch_rows, columns=columns):
                for record in batch.to_pylist():
                    for name, (kind, first) in held.items():
                        count = len(record[name]) if isinstance(record[name], list) else int(record[name] is not None)
                        record[name] = [parquet_reference(str(path), row, first + n, kind) for n in range(count)]
                    yield f"{path}[{row}]", without_nulls(record)
                    row += 1
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from None


def _leaves(file: pq.ParquetFile, name: str) -> dict[str, int]:
    """The columns inside `name`, as parquet calls them, and their numbers."""
    paths = (file.schema.column(number).path for number in range(len(file.schema)))
    return {path: n for n, path in enumerate(paths) if path == name or path.startswith(f"{name}.")}


def _path_leaf(file: pq.ParquetFile, name: str) -> str | None:
    return next((path for path in _leaves(file, name) if path.endswith(".path")), None)


def _holds_no_bytes(file: pq.ParquetFile, name: str) -> bool:
    """Whether the file's own statistics say that every value of the bytes in `name` is null."""
    number = next((n for path, n in _leaves(file, name).items() if path.endswith(".bytes")), None)
    if number is None:
        return False
    chunks = [file.metadata.row_group(group).column(number) for group in range(file.metadata.num_row_groups)]
    return all(c.statistics is not None and c.statistics.num_values == 0 and c.num_values > 0 for c in chunks)
