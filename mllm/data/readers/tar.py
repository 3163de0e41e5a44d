"""Samples of a webdataset tar: neighbouring members that share their name up to the first dot."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.data.readers.errors import BadRecordError, OnError
from mllm.data.readers.json_lines import parse_json
from mllm.errors import UserError
from mllm.images.stored import tar_reference

IMAGE_SUFFIXES = ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp")
MAX_TEXT_BYTES = 64 * 2**20


def read_tar(path: Path, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) pairs: the fields of the `json` member, the text of `txt` as `txt`, the key as `id` if none is given.

    The images, in their order in the tar, are references and stand as `images` and `image` in place of what the JSON
    calls them; their bytes are passed over.
    """
    key, record = None, _Record()
    try:
        # "r:" takes no compressed tar: an image in one has no place of its own.
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                # tarfile would keep every header of a shard.
                tar.members = []  # type: ignore[attr-defined]
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                member_key = f"{folder}/{stem}" if folder else stem
                if member_key != key:
                    yield from record.whole(path, key, on_error)
                    key, record = member_key, _Record()
                record.add(path, key, suffix.lower(), member, tar)
            yield from record.whole(path, key, on_error)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: not a readable, uncompressed tar: {error}") from None


class _Record:
    """What the members of one key amount to."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.images: list[str] = []
        self.error: BadRecordError | None = None

    def whole(self, path: Path, key: str | None, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
        """The record with its place; nothing where a member can't be read, or before the first (key None)."""
        if self.error is not None:
            on_error(self.error)
        elif key is not None:
            images = {"images": self.images, "image": self.images} if self.images else {}
            yield f"{path}:{key}", {"id": key} | self.fields | images

    def add(self, path: Path, key: str, suffix: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        if suffix.rpartition(".")[-1] in IMAGE_SUFFIXES:
            self.images.append(tar_reference(str(path), member.offset_data, member.size))
        elif suffix in ("json", "txt"):
            try:
                self.fields |= _text_fields(f"{path}:{key}.{suffix}", suffix, member, tar)
            except BadRecordError as error:
                self.error = self.error or error


def _text_fields(place: str, suffix: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> dict[str, Any]:
    if member.size > MAX_TEXT_BYTES:
        raise BadRecordError(place, f"has {member.size} bytes; the limit is {MAX_TEXT_BYTES}")
    file = tar.extractfile(member)
    assert file is not None, member.name
    try:
        fields = parse_json(file.read()) if suffix == "json" else {"txt": file.read().decode("utf-8")}
    except (ValueError, RecursionError) as error:
        raise BadRecordError(place, f"not valid {'JSON' if suffix == 'json' else 'UTF-8'}: {error}") from None
    if not isinstance(fields, dict):
        raise BadRecordError(place, f"expected an object, found {type(fields).__name__}")
    return fields
