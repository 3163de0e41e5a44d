"""Lines of text files in UTF-8, with their places; what isn't UTF-8 is told by its line."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from mllm.data.readers.errors import BadRecordError
from mllm.errors import UserError

BOM = codecs.BOM_UTF8


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
