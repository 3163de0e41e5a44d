"""Records of a JSON-lines file or a JSON array, each with the place it came from, one at a time; whole JSON documents."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mllm.data.readers.errors import BadRecordError, OnError
from mllm.errors import UserError

WHITE_SPACE = " \t\n\r"


def parse_json(line: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError also for half of a surrogate pair, which no encoding has."""
    value = json.loads(line)
    _check_text(value, b"\\ud" in line.lower())
    return value


def _check_text(value: Any, has_surrogates: bool) -> None:
    if has_surrogates:
        json.dumps(value, ensure_ascii=False).encode("utf-8")


def read_lines(path: Path, on_error: OnError) -> Iterator[tuple[str, Any]]:
    """(`file:line`, record) pairs of JSON lines; empty lines are passed over."""
    # Read as bytes, only "\n" separates records: text would also be cut at U+2028 inside a string.
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    record = parse_json(line)
                except (ValueError, RecursionError) as error:
                    on_error(BadRecordError(f"{path}:{number}", f"not valid JSON: {error}"))
                else:
                    yield f"{path}:{number}", record


def read_array(path: Path, on_error: OnError) -> Iterator[tuple[str, Any]]:
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
                start = at
                record, at = decoder.raw_decode(text, start)
                _check_text(record, "\\ud" in text[start:at].lower())
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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def read_document(path: Path | str, fields: Sequence[str]) -> dict[str, Any]:
    """The one JSON object that a file is. Raises UserError unless it has all of `fields`."""
    try:
        document = parse_json(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    missing = [name for name in fields if not (isinstance(document, dict) and isinstance(document.get(name), list))]
    if missing:
        raise UserError(f"{path}: expected a JSON object with the lists {', '.join(fields)}; {missing[0]} is missing")
    return document


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in WHITE_SPACE:
        at += 1
    return at
