"""Rows of a parquet file. Images held in it become references, so that reading rows reads no image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mllm.data.readers.errors import OnError
from mllm.data.readers.fields import without_nulls
from mllm.errors import UserError
from mllm.images.stored import parquet_reference

ROWS_AT_ONCE = 256


def read_parquet(path: Path, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) pairs. Of a column `images` or `image` with bytes in it, only how many there are is read."""
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            held = [
                name for name in ("images", "image") if name in file.schema_arrow.names and _holds_bytes(file, name)
            ]
            columns = [name for name in file.schema_arrow.names if name not in held]
            row = 0
            for batch in file.iter_batches(
                ROWS_AT_ONCE, columns=columns + [f"{name}.{_path_leaf(file, name)}" for name in held]
            ):
                for record in batch.to_pylist():
                    for name in held:
                        count = len(record[name] or ()) if _is_list(file, name) else int(record[name] is not None)
                        record[name] = [parquet_reference(str(path), row, number) for number in range(count)]
                    yield f"{path}[{row}]", without_nulls(record)
                    row += 1
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from None


def _is_list(file: pq.ParquetFile, name: str) -> bool:
    kind = file.schema_arrow.field(name).type
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _holds_bytes(file: pq.ParquetFile, name: str) -> bool:
    kind = file.schema_arrow.field(name).type
    element = kind.value_type if _is_list(file, name) else kind
    return pa.types.is_struct(element) and {"bytes", "path"} <= {field.name for field in element}


def _path_leaf(file: pq.ParquetFile, name: str) -> str:
    """The column of paths inside `name`, as parquet calls it."""
    paths = (file.schema.column(i).path for i in range(len(file.schema)))
    return next(p for p in paths if p.startswith(f"{name}.") and p.endswith(".path")).removeprefix(f"{name}.")
