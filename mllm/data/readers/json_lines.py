"""Records of a JSON-lines file or a JSON array, each with the place it came from; one record in memory at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.errors import UserError

WHITE_SPACE = " \t\n\r"


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(`file:line`, record) pairs of JSON lines; empty lines are passed over."""
    # Read as bytes, only "\n" separates records: text would also be cut at U+2028 inside a string.
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}:{number}: not valid JSON: {error}") from None


def read_array(path: Path) -> Iterator[tuple[str, Any]]:
    """(`file[index]`, record) pairs of a JSON array: the text of the file is in memory, its objects are not."""
    decoder = json.JSONDecoder()
    try:
        text = path.read_text(encoding="utf-8")
        at = _skip(text, 0)
        if text[at : at + 1] != "[":
            kind = type(json.loads(text)).__name__
            raise UserError(f"{path}: expected a JSON array of samples, found {kind}")
        at, index = _skip(text, at + 1), 0
        if text[at : at + 1] == "]":
            at += 1
        else:
            while True:
                record, at = decoder.raw_decode(text, at)
                yield f"{path}[{index}]", record
                index += 1
                at = _skip(text, at)
                closing = text[at : at + 1] == "]"
                if not closing and text[at : at + 1] != ",":
                    raise json.JSONDecodeError("expecting ',' or ']'", text, at)
                at = at + 1 if closing else _skip(text, at + 1)
                if closing:
                    break
        if _skip(text, at) != len(text):
            raise json.JSONDecodeError("extra data", text, at)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in WHITE_SPACE:
        at += 1
    return at
