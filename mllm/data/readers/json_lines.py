"""Text files in UTF-8: lines, and the records of JSON lines or a JSON array, each with the place it came from, one at a
time; whole JSON documents."""

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mllm.data.readers.errors import BadRecordError, OnError
from mllm.data.readers.fields import found
from mllm.errors import UserError

BOM = codecs.BOM_UTF8
WHITE_SPACE = " \t\n\r"


def check_encoding(path: Path) -> None:
    """Raise UserError for a file that says in its first bytes that it is in UTF-16."""
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{path}: is in UTF-16; save it as UTF-8")


def raw_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(`file:line`, line) pairs, a byte order mark left out. Only a line feed ends a line: U+2028 may stand inside one."""
    check_encoding(path)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            yield f"{path}:{number}", line.removeprefix(BOM) if number == 1 else line


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(`file:line`, line) pairs without the line ends. Raises BadRecordError for a line that isn't UTF-8."""
    for place, line in raw_lines(path):
        try:
            yield place, line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise BadRecordError(place, not_utf8(error)) from None


def not_utf8(error: UnicodeDecodeError) -> str:
    byte = f"byte 0x{error.object[error.start]:02x} at {error.start}"
    return f"is not valid UTF-8 ({byte}); save the file as UTF-8"


def parse_json(line: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError also for half of a surrogate pair, which no encoding has."""
    value = json.loads(line.removeprefix(BOM).decode("utf-8"))
    _check_text(value, b"\\ud" in line.lower())
    return value


def _check_text(value: Any, has_surrogates: bool) -> None:
    if has_surrogates:
        json.dumps(value, ensure_ascii=False).encode("utf-8")


def reason_of(error: ValueError | RecursionError) -> str:
    """Why a JSON text can't be read, in a line."""
    return f"not valid JSON: {not_utf8(error) if isinstance(error, UnicodeDecodeError) else error}"


def read_json(path: Path, on_error: OnError) -> Iterator[tuple[str, Any]]:
    """Pairs of `read_array` or of `read_lines`: an array is told by its first sign, whatever the file is called."""
    first = next((line for _, line in raw_lines(path) if line.strip()), b"").strip()
    if first.startswith(b"["):
        return read_array(path, on_error)
    if path.suffix == ".json":
        try:
            parse_json(first)
        except UnicodeDecodeError:
            pass  # a line of its own, to be named
        except (ValueError, RecursionError):
            return read_array(path, on_error)  # no line by itself: says what the whole is
    return read_lines(path, on_error)


def read_lines(path: Path, on_error: OnError) -> Iterator[tuple[str, Any]]:
    """(`file:line`, record) pairs of JSON lines; empty lines are passed over."""
    for place, line in raw_lines(path):
        if line.strip():
            try:
                record = parse_json(line)
            except (ValueError, RecursionError) as error:
                on_error(BadRecordError(place, reason_of(error)))
            else:
                yield place, record


def read_array(path: Path, on_error: OnError) -> Iterator[tuple[str, Any]]:
    """(`file[index]`, record) pairs of a JSON array: the text of the file is in memory, its objects are not."""
    decoder = json.JSONDecoder()
    try:
        text = _whole_text(path)
        at = _skip(text, 0)
        if text[at : at + 1] != "[":
            value = json.loads(text)
            held = f"an object; {found(value)}" if isinstance(value, dict) else type(value).__name__
            raise UserError(f"{path}: expected a JSON array of samples, or a sample a line; found {held}")
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
        raise UserError(f"{path}: {reason_of(error)}") from None


def _whole_text(path: Path) -> str:
    """The text of a file. Raises BadRecordError with the line for what isn't UTF-8."""
    content = path.read_bytes().removeprefix(BOM)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadRecordError(f"{path}:{line}", not_utf8(error)) from None


def read_document(path: Path | str, fields: Sequence[str]) -> dict[str, Any]:
    """The one JSON object that a file is. Raises UserError unless it has all of `fields`."""
    try:
        document = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {reason_of(error)}") from None
    missing = [name for name in fields if not (isinstance(document, dict) and isinstance(document.get(name), list))]
    if missing:
        held = found(document) if isinstance(document, dict) else f"found {type(document).__name__}"
        raise UserError(
            f"{path}: expected a JSON object with the lists {', '.join(fields)}; {missing[0]} is missing ({held})"
        )
    return document


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in WHITE_SPACE:
        at += 1
    return at
