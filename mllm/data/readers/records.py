"""Records of a file of any container that is known here; readers turn them into samples, whatever they came in."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mllm.data.readers.json_lines import read_array, read_lines
from mllm.data.readers.parquet import read_parquet
from mllm.data.readers.remote import is_url, read_remote
from mllm.data.readers.tar import read_tar
from mllm.errors import UserError

Records = Iterator[tuple[str, dict[str, Any]]]
CONTAINERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".json": read_array,
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".parquet": read_parquet,
    ".tar": read_tar,
}


def read_records(path: Path | str) -> Records:
    """(place, record) pairs; a place is `file:line`, `file[index]` or `file:key`. Raises UserError naming the place."""
    if is_url(path):
        records = read_remote(str(path))
    else:
        path = Path(path)
        if path.suffix not in CONTAINERS:
            raise UserError(f"{path}: unknown kind of file; known are {', '.join(sorted(CONTAINERS))}")
        records = CONTAINERS[path.suffix](path)
    for place, record in records:
        if not isinstance(record, dict):
            raise UserError(f"{place}: expected an object, found {type(record).__name__}")
        yield place, record
