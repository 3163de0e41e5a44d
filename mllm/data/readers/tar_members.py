"""The files in an uncompressed tar, by their headers alone: ustar, GNU's long names, and pax paths and sizes.

Python's tarfile takes a damaged header that isn't the first for the end of the file; here it is an error.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

BLOCK_BYTES = 512
MAX_NAME_BYTES = 2**20
FILES = (b"0", b"\0", b"7")
LONG_NAME, PAX, GLOBAL_PAX = b"L", b"x", b"g"
_CHECKSUM = slice(148, 156)


class Member(NamedTuple):
    """A file in a tar: where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int


class BadTarError(Exception):
    """What is read is no tar, a compressed one, or one that is damaged."""


def tar_members(descriptor: int) -> Iterator[Member]:
    """The files of an open tar in turn. Raises BadTarError at the first header that is none, and OSError."""
    end, at = os.fstat(descriptor).st_size, 0
    if not end:
        raise BadTarError("it is empty")
    given: dict[str, str] = {}
    while at < end:
        header = os.pread(descriptor, BLOCK_BYTES, at)
        if not header.rstrip(b"\0"):
            return
        _check(header, at)
        kind, size = header[156:157], int(given.get("size") or _number(header[124:136]))
        start = at + BLOCK_BYTES
        at = start + -(-size // BLOCK_BYTES) * BLOCK_BYTES
        if start + size > end:
            raise BadTarError(f"it ends {start + size - end} bytes before the file at byte {start} does")
        if kind in (LONG_NAME, PAX):
            given |= _given(kind, os.pread(descriptor, min(size, MAX_NAME_BYTES), start))
            continue
        if kind in FILES:
            yield Member(given.get("path") or _name(header), start, size)
        if kind != GLOBAL_PAX:
            given = {}


def _check(header: bytes, at: int) -> None:
    """Raise BadTarError where the checksum isn't that of the header."""
    if len(header) < BLOCK_BYTES:
        raise BadTarError(f"it ends within the header at byte {at}")
    # The checksum's own place counts as eight spaces.
    total = sum(header) - sum(header[_CHECKSUM]) + 8 * 32
    if total != _number(header[_CHECKSUM]):
        raise BadTarError(f"there is no header at byte {at}")


def _number(field: bytes) -> int:
    """An octal number, or one in base 256, which large files have."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return -1


def _name(header: bytes) -> str:
    name, prefix = header[:100].partition(b"\0")[0], b""
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _given(kind: bytes, content: bytes) -> dict[str, str]:
    """What a block says of the file that follows it: its `path`, and its `size` where that is said."""
    if kind == LONG_NAME:
        return {"path": content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    given, at = {}, 0
    while at < len(content) and (space := content.find(b" ", at)) > at:
        length = int(content[at:space]) if content[at:space].isdigit() else 0
        if length <= space - at:
            break
        key, _, value = content[space + 1 : at + length].rstrip(b"\n").partition(b"=")
        if key in (b"path", b"size"):
            given[key.decode()] = value.decode("utf-8", "surrogateescape")
        at += length
    return given
