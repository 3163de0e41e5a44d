"""Records of a JSON-lines file or a JSON array, each with the place it came from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.errors import UserError


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) pairs: `file:line` for JSON lines, `file[index]` for an array. Raises UserError naming the place."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            records = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(records, list):
            raise UserError(f"{path}: expected a JSON array of samples, found {type(records).__name__}")
        places = ((f"{path}[{index}]", record) for index, record in enumerate(records))
    else:
        # Only "\n" separates records: str.splitlines would also cut at U+2028 inside a string.
        lines = (line for line in enumerate(text.split("\n"), 1) if line[1].strip())
        places = ((f"{path}:{number}", _parse(path, number, line)) for number, line in lines)
    for place, record in places:
        if not isinstance(record, dict):
            raise UserError(f"{place}: expected an object, found {type(record).__name__}")
        yield place, record


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: not valid JSON: {error}") from None
