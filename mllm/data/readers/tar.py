"""Samples of a webdataset tar: neighbouring members that share their name up to the first dot.

Where a name has more dots, what stands between the first and the last of them is a part of the key if the texts differ in it
(`22.05.txt` and `22.10.txt` are two samples), else it numbers or labels (`7.0.png`, `7.1.png` and `7.json` are one).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.data.readers.errors import BadRecordError, OnError
from mllm.data.readers.json_lines import parse_json
from mllm.data.readers.tar_members import BadTarError, Member, tar_members
from mllm.errors import UserError
from mllm.media.ref import IMAGE_SUFFIXES, VIDEO_SUFFIXES, tar_reference

MAX_TEXT_BYTES = 64 * 2**20
TEXTS = {"txt": "txt", "text": "txt", "caption": "caption"}  # suffix of a member → the field that its text is


def read_tar(path: Path, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) pairs: the fields of the `json` member, the text of `txt` or `text` as `txt` and of `caption` as
    `caption`, the key as `id` if none is given.

    The images, in their order in the tar, are references and stand as `images` and `image` in place of what the JSON
    calls them, videos as `videos` and `video`; their bytes are passed over.
    """
    key, group = "", _Group(path, "")
    try:
        with open(path, "rb", buffering=0) as file:
            for member in tar_members(file.fileno()):
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                member_key = f"{folder}/{stem}" if folder else stem
                if member_key != key:
                    yield from group.records(on_error)
                    key, group = member_key, _Group(path, member_key)
                group.add(suffix, member, file.fileno())
            yield from group.records(on_error)
    except (OSError, BadTarError) as error:
        raise UserError(f"{path}: not a readable, uncompressed tar: {error}") from None


class _Group:
    """The members that share a key up to the first dot; `labels` are what their names have up to the last."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.fields: dict[str, dict[str, Any]] = {}
        self.media: list[tuple[str, str, str]] = []  # (label, "image" or "video", reference)
        self.errors: dict[str, BadRecordError] = {}

    def add(self, suffix: str, member: Member, descriptor: int) -> None:
        label, _, kind = suffix.rpartition(".")
        kind = kind.lower()
        if kind in IMAGE_SUFFIXES or kind in VIDEO_SUFFIXES:
            noun = "image" if kind in IMAGE_SUFFIXES else "video"
            self.media.append((label, noun, tar_reference(str(self.path), member.offset, member.size)))
        elif kind == "json" or kind in TEXTS:
            fields = self.fields.setdefault(label, {})
            try:
                fields |= _text_fields(f"{self.path}:{self.key}.{suffix}", kind, member, descriptor)
            except BadRecordError as error:
                self.errors.setdefault(label, error)

    def records(self, on_error: OnError) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, record) of each sample in the group; one with a member that can't be read goes to `on_error`."""
        texts, labels = self.fields, [label for label, _, _ in self.media]
        if len(texts) > 1 and "" not in texts:
            # An image without a label is the image of all.
            for label in dict.fromkeys([*texts, *filter(None, labels)]):
                own = self._held({label, ""})
                yield from self._record(f"{self.key}.{label}", texts.get(label, {}), own, [label], on_error)
        elif len(texts) == 1 and all(label in texts for label in labels):
            (label, fields), *_ = texts.items()
            yield from self._record(
                f"{self.key}.{label}".rstrip("."), fields, self._held(set(labels)), [label], on_error
            )
        elif texts or labels:
            labelled = {label: held.get("txt", held) for label, held in texts.items() if label}
            held = self._held(set(labels))
            yield from self._record(self.key, labelled | texts.get("", {}), held, list(texts), on_error)

    def _held(self, labels: set[str]) -> dict[str, list[str]]:
        """The fields of a record that shows the images and videos of `labels`."""
        held: dict[str, list[str]] = {}
        for noun in ("image", "video"):
            own = [reference for label, kind, reference in self.media if kind == noun and label in labels]
            held |= {f"{noun}s": own, noun: own} if own else {}
        return held

    def _record(
        self, key: str, fields: dict[str, Any], held: dict[str, list[str]], labels: list[str], on_error: OnError
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        error = next((self.errors[label] for label in labels if label in self.errors), None)
        if error is not None:
            on_error(error)
        else:
            yield f"{self.path}:{key}", {"id": key} | fields | held


def _text_fields(place: str, suffix: str, member: Member, descriptor: int) -> dict[str, Any]:
    if member.size > MAX_TEXT_BYTES:
        raise BadRecordError(place, f"has {member.size} bytes; the limit is {MAX_TEXT_BYTES}")
    content = os.pread(descriptor, member.size, member.offset)
    try:
        fields = parse_json(content) if suffix == "json" else {TEXTS[suffix]: content.decode("utf-8")}
    except (ValueError, RecursionError) as error:
        raise BadRecordError(place, f"not valid {'JSON' if suffix == 'json' else 'UTF-8'}: {error}") from None
    if not isinstance(fields, dict):
        raise BadRecordError(place, f"expected an object, found {type(fields).__name__}")
    return fields
