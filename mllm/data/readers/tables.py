"""Rows of CSV and TSV files with a header."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.data.readers.errors import OnError
from mllm.errors import UserError


def read_csv(path: Path, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, row) pairs, the line being a row's last; fields may be quoted and hold line ends."""
    return _rows(path, csv.excel)


def read_tsv(path: Path, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, row) pairs of a file whose fields are parted by tabs."""
    return _rows(path, csv.excel_tab)


def _rows(path: Path, dialect: type[csv.Dialect]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, dialect=dialect)
            for row in rows:
                yield f"{path}:{rows.line_num}", {key: value for key, value in row.items() if key and value is not None}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable table: {error}") from None
