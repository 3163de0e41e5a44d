"""Pairs of a source that are listed once in a file of the cache, and read from there by their number.

Nothing of the list stays in memory, and it isn't mapped either: an epoch in random order would touch every page.

The file: each pair as a JSON text [image, caption, place], one after another; then int64 [pairs + 1], where each begins and
the last ends; then a JSON text of what was found; then its length and the number of pairs, int64 [2].
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mllm.contrastive.pairs import Home, Pair
from mllm.data.index import cache_directory, writing_alone
from mllm.errors import UserError
from mllm.media.ref import is_stored

logger = logging.getLogger(__name__)

NUMBER_BYTES = 8


@dataclass(frozen=True)
class Found:
    """What reading a source gave: pairs, how many records were left out for which reason, and the first words of some."""

    pairs: int
    left_out: dict[str, int]
    examples: tuple[str, ...]
    has_different_captions: bool


class PairListing(Sequence[Pair]):
    """The pairs of a file that `open_listing` wrote."""

    def __init__(self, file: BinaryIO, home: Home) -> None:
        self._file, self._home = file, home
        end = os.fstat(file.fileno()).st_size
        text_bytes, self._count = self._numbers(end - 2 * NUMBER_BYTES, 2)
        text_start = end - 2 * NUMBER_BYTES - text_bytes
        self.found = Found(**json.loads(self._read(text_start, text_bytes)))
        self._starts = text_start - NUMBER_BYTES * (self._count + 1)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        start, end = self._numbers(self._starts + NUMBER_BYTES * (index % self._count), 2)
        image, caption, place = json.loads(self._read(start, end - start))
        return Pair(image if is_stored(image) else Path(image), caption, place, self._home)

    def _numbers(self, start: int, count: int) -> array[int]:
        return array("q", self._read(start, NUMBER_BYTES * count))

    def _read(self, start: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, start)


def open_listing(
    name: str, keys: Sequence[str], home: Home, read: Callable[[Counter[str], list[str]], Iterator[Pair]]
) -> PairListing:
    """The listing of the pairs that `read(left_out, examples)` gives, from the cache or written to it.

    keys: whatever would change a pair. Of several processes that want the same listing one writes it and the others wait.
    """
    key = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
    directory = cache_directory()
    if directory is None:
        with tempfile.TemporaryDirectory() as private:
            # The open file outlives its name.
            return PairListing(open(_write(name, read, Path(private) / "pairs"), "rb"), home)
    final = directory / f"{key}.pairs"
    if not final.is_file():
        with writing_alone(directory, key, f"the listing of {name}"):
            if not final.is_file():
                _write(name, read, final)
    return PairListing(open(final, "rb"), home)


def _write(name: str, read: Callable[[Counter[str], list[str]], Iterator[Pair]], final: Path) -> Path:
    """Write a listing under a temporary name, flush it to the disk and give it its name."""
    started, left_out, examples = time.monotonic(), Counter[str](), list[str]()
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    first, differ, count = None, False, 0
    try:
        with open(temporary, "wb") as file, tempfile.TemporaryFile(dir=final.parent) as starts:
            at = 0
            array("q", [at]).tofile(starts)
            for count, pair in enumerate(read(left_out, examples), 1):
                at += file.write(json.dumps([str(pair.image), pair.caption, pair.place], ensure_ascii=False).encode())
                starts.write(at.to_bytes(NUMBER_BYTES, sys.byteorder))
                first = pair.caption if first is None else first
                differ = differ or pair.caption != first
            starts.seek(0)
            shutil.copyfileobj(starts, file)
            found = Found(count, dict(left_out), tuple(examples), differ)
            text = json.dumps(vars(found)).encode()
            file.write(text)
            array("q", [len(text), found.pairs]).tofile(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    logger.info("listed %d pairs of %s in %.1f s", found.pairs, name, time.monotonic() - started)
    return final


def needs_different_captions(found: Found, name: str) -> None:
    """Raise UserError where there is nothing to contrast."""
    if not found.has_different_captions:
        raise UserError(f"{name}: needs at least two different captions to contrast")
