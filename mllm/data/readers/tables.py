"""Rows of CSV and TSV files with a header."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.data.readers.errors import BadRecordError, OnError
from mllm.data.readers.json_lines import check_encoding
from mllm.errors import UserError


def read_csv(path: Path, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, row) pairs, the line being a row's last; fields may be quoted and hold line ends.

    Fields are parted by commas; where the header has none, by the tabs or semicolons that it has.
    """
    return _rows(path, ",\t;", on_error)


def read_tsv(path: Path, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, row) pairs of a file whose fields are parted by tabs; where the header has none, by commas."""
    return _rows(path, "\t,;", on_error)


def _rows(path: Path, delimiters: str, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
    check_encoding(path)
    try:
        # A byte that isn't UTF-8 becomes half of a surrogate pair, so that it spoils its own row alone.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = file.readline()
            file.seek(0)
            delimiter = next((sign for sign in delimiters if sign in header), delimiters[0])
            rows = csv.DictReader(file, delimiter=delimiter)
            for row in rows:
                place = f"{path}:{rows.line_num}"
                if None in row:  # fields beyond the header: most likely a text whose comma isn't quoted
                    on_error(BadRecordError(place, f"has more fields than the header's {len(rows.fieldnames or ())}"))
                    continue
                fields = {key: value for key, value in row.items() if key and value is not None}
                if _is_text("".join(fields.values())):
                    yield place, fields
                else:
                    on_error(BadRecordError(place, "is not valid UTF-8"))
    except csv.Error as error:
        raise UserError(f"{path}: not a readable table: {error}") from None


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
