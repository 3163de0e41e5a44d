"""What is known of the images of an index, row for row: paths and metadata, in an Arrow file that is memory-mapped."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mllm.data.readers.json_lines import text_lines
from mllm.errors import UserError

IMAGE = "image"
# What a line calls its image: ours, and that of image folders of the hub.
IMAGE_KEYS = (IMAGE, "file_name")
BESIDE = "metadata.jsonl"
CONDITION = re.compile(r"\s*([^\s!<>=~]+)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*")
COMPARISONS = {
    "=": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


def read_metadata(folder: Path, given: Path | None) -> dict[Path, dict[str, Any]]:
    """Read JSON lines of what is known of images, by the images' resolved paths; {} where there are none.

    given: a file of lines, else `metadata.jsonl` in the folder is one. A line has its image under "image" or "file_name",
    relative to the folder. Raises UserError with the place of a line that is none.
    """
    path = given or folder / BESIDE
    if given is None and not path.is_file():
        return {}
    if not path.is_file():
        raise UserError(f"metadata {path} does not exist")
    found: dict[Path, dict[str, Any]] = {}
    for place, line in text_lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            image = next(values.pop(key) for key in IMAGE_KEYS if key in values)
            found[(folder / image).resolve()] = values
        except (ValueError, AttributeError, StopIteration, TypeError):
            raise UserError(
                f'{place}: expected an object of JSON with "image" (or "file_name") and what is known of it'
            ) from None
    return found


def as_table(paths: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Make columns of rows: what a row lacks is null, and a column of more than one kind of values is text."""
    names = dict.fromkeys(name for row in metadata for name in row)
    columns = {name: _column([row.get(name) for row in metadata]) for name in names}
    return pa.table({IMAGE: pa.array(paths, pa.large_string()), **columns})


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def joined(one: pa.Table, other: pa.Table) -> pa.Table:
    """Put the rows of two tables after each other, as `as_table` would have made them at once."""
    try:
        return pa.concat_tables([one, other], promote_options="permissive").combine_chunks()
    except pa.ArrowTypeError:
        rows = [*one.to_pylist(), *other.to_pylist()]
        return as_table([row.pop(IMAGE) for row in rows], rows)


def save_table(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def open_table(path: Path) -> pa.Table:
    """Map a table that `save_table` wrote; nothing is read before it is asked for."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def rows_where(table: pa.Table, conditions: Sequence[str]) -> np.ndarray | None:
    """Return int64 rows that meet all conditions, such as `year>=2020` or `caption~dog` (holds the text); None without one.

    A row whose value isn't known meets none. Raises UserError for a condition or a column that is none, and for a value that
    can't be compared with the column's.
    """
    if not conditions:
        return None
    kept = pa.chunked_array([pa.array(np.ones(table.num_rows, bool))])
    for condition in conditions:
        kept = pc.and_(kept, pc.fill_null(_meets(table, condition), False))
    return np.flatnonzero(kept.to_numpy()).astype(np.int64)


def _meets(table: pa.Table, condition: str) -> pa.ChunkedArray:
    parsed = CONDITION.fullmatch(condition)
    if parsed is None:
        raise UserError(
            f"the condition {condition!r} is none; write FIELD=VALUE, or !=, <, <=, >, >=, or ~ for a part of a text"
        )
    name, comparison, text = parsed.groups()
    if name not in table.column_names:
        raise UserError(f"no image of the index has a {name!r}; known are: {', '.join(table.column_names)}")
    column = table[name]
    if comparison == "~":
        return pc.match_substring(column.cast(pa.string()), text, ignore_case=True)
    try:
        value = pa.scalar(text).cast(column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"the condition {condition!r}: {name} is of kind {column.type}, and {text!r} is none") from None
    return COMPARISONS[comparison](column, value)
