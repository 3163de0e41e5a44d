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
from typing import Any

from mllm.contrastive.left_out import LeftOut
from mllm.contrastive.pairs import Home, Pair
from mllm.data.index import cache_directory, writing_alone
from mllm.errors import UserError
from mllm.media.ref import is_stored

logger = logging.getLogger(__name__)

NUMBER_BYTES = 8


@dataclass(frozen=True)
class Found:
    """What reading a source gave: pairs, and what `LeftOut` says of those that were met."""

    pairs: int
    met: int
    counts: dict[str, int]
    examples: list[str]
    has_different_captions: bool


class PairListing(Sequence[Pair]):
    """The pairs of a file that `open_listing` wrote."""

    def __init__(self, path: Path, home: Home) -> None:
        """The file stays open as long as the listing lives, also where its name is taken away."""
        self._file, self._home = open(path, "rb"), home  # noqa: SIM115
        end = os.fstat(self._file.fileno()).st_size
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

    def _numbers(self, start: int, count: int) -> "array[int]":
        return array("q", self._read(start, NUMBER_BYTES * count))

    def _read(self, start: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, start)


def open_listing(
    name: str, keys: Sequence[str], home: Home, read: Callable[[], Iterator[Pair]], left_out: LeftOut
) -> PairListing:
    """The listing of the pairs that `read()` gives, from the cache or written to it, and in `left_out` what it left out.

    keys: whatever would change a pair. Of several processes that want the same listing one writes it and the others wait.
    Raises TooManyBadError where too many can't be used.
    """
    key = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
    directory = cache_directory()
    if directory is None:
        with tempfile.TemporaryDirectory() as private:
            return PairListing(_write(name, read, left_out, Path(private) / "pairs"), home)
    final = directory / f"{key}.pairs"
    if not final.is_file():
        with writing_alone(directory, key, f"the listing of {name}"):
            if not final.is_file():
                _write(name, read, left_out, final)
    listing = PairListing(final, home)
    left_out.met, left_out.examples = listing.found.met, listing.found.examples
    left_out.counts = Counter(listing.found.counts)
    left_out.check()
    return listing


def _write(name: str, read: Callable[[], Iterator[Pair]], left_out: LeftOut, final: Path) -> Path:
    """Write a listing under a temporary name, flush it to the disk and give it its name."""
    started, temporary = time.monotonic(), final.with_name(f".{final.name}.{os.getpid()}.tmp")
    first, differ, count = None, False, 0
    try:
        with open(temporary, "wb") as file, tempfile.TemporaryFile(dir=final.parent) as starts:
            at = 0
            starts.write(at.to_bytes(NUMBER_BYTES, sys.byteorder))
            for pair in read():
                count += 1
                at += file.write(json.dumps([str(pair.image), pair.caption, pair.place], ensure_ascii=False).encode())
                starts.write(at.to_bytes(NUMBER_BYTES, sys.byteorder))
                first = pair.caption if first is None else first
                differ = differ or pair.caption != first
            starts.seek(0)
            shutil.copyfileobj(starts, file)
            found = Found(count, left_out.met, dict(left_out.counts), left_out.examples, differ)
            text = json.dumps(vars(found)).encode()
            file.write(text)
            file.write(array("q", [len(text), count]).tobytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    logger.info("listed %d pairs of %s in %.1f s", count, name, time.monotonic() - started)
    return final


def needs_different_captions(found: Found, name: str) -> None:
    """Raise UserError where there is nothing to contrast."""
    if not found.has_different_captions:
        raise UserError(f"{name}: needs at least two different captions to contrast")
