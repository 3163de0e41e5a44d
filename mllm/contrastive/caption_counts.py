"""How often captions, words and neighbouring words occur, counted in a table of fixed size.

ALIGN keeps noisy captions and leaves out by frequency alone (Jia et al. 2021, arXiv:2102.05918, section 3): those that many
images share, and those with a word or two words in succession that are rare. Exact counts of a billion captions would need a
cluster; here a text is a hash, and each hash has two counters of which the lower counts. A count is never too low, and too
high only where both are shared.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from mllm.errors import UserError
from mllm.files import atomic_file

BY = "mllm clip count-captions"
ROWS = 2
CAPTIONS_AT_ONCE = 4096
MOST = np.iinfo(np.uint32).max
_WORD = re.compile(r"\w+")


def words_of(caption: str) -> list[str]:
    """The words of a caption, small, without marks."""
    return _WORD.findall(caption.lower())


def terms_of(caption: str) -> list[str]:
    """The words of a caption, and each two in succession."""
    words = words_of(caption)
    return [*words, *(f"{one} {two}" for one, two in pairwise(words))]


class CaptionCounts:
    """Counts of captions and of terms. table: uint32 [2 kinds, 2 rows, slots], slots a power of two."""

    def __init__(self, table: np.ndarray) -> None:
        self._table = table
        self._mask = np.uint64(table.shape[-1] - 1)

    @classmethod
    def of(cls, captions: Iterable[str], slots: int) -> "CaptionCounts":
        """Count in tables of `slots` slots, a power of two."""
        counts = cls(np.zeros((2, ROWS, slots), np.uint32))
        chunk: list[str] = []
        for caption in captions:
            chunk.append(caption)
            if len(chunk) == CAPTIONS_AT_ONCE:
                counts._add(chunk)
                chunk = []
        counts._add(chunk)
        return counts

    def pairs_of(self, caption: str) -> int:
        """How many pairs have the caption, at most."""
        return int(self._lowest(0, [_key(caption)])[0])

    def rarest(self, caption: str) -> int:
        """How often the rarest word, or two words in succession, of a caption occurs; 0 for a caption without words."""
        terms = terms_of(caption)
        return int(self._lowest(1, terms).min()) if terms else 0

    def save(self, path: Path | str) -> None:
        """Write the table to a file. Raises UserError where there is one of another's."""
        with atomic_file(Path(path), BY) as temporary, open(temporary, "wb") as file:
            np.save(file, self._table)

    def _add(self, captions: list[str]) -> None:
        for kind, texts in enumerate(([_key(c) for c in captions], [t for c in captions for t in terms_of(c)])):
            for row, slots in enumerate(self._slots(texts)):
                different, counts = np.unique(slots, return_counts=True)
                held = self._table[kind, row]
                held[different] += np.minimum(counts.astype(np.uint32), MOST - held[different])

    def _lowest(self, kind: int, texts: list[str]) -> np.ndarray:
        return np.min([self._table[kind, row, slots] for row, slots in enumerate(self._slots(texts))], axis=0)

    def _slots(self, texts: list[str]) -> Iterator[np.ndarray]:
        """For each row int64 [texts]."""
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8 * ROWS).digest() for text in texts)
        numbers = np.frombuffer(digests, np.uint64).reshape(-1, ROWS) & self._mask
        return (numbers[:, row].astype(np.int64) for row in range(ROWS))


def _key(caption: str) -> str:
    return " ".join(caption.lower().split())


def open_counts(path: Path | str) -> CaptionCounts:
    """The table of a file, mapped into memory. Raises UserError for any other file."""
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no file of `{BY}`: {error}") from None
    if table.dtype != np.uint32 or table.ndim != 3 or table.shape[:2] != (2, ROWS):
        raise UserError(f"{path}: no file of `{BY}`: it holds {table.dtype} {list(table.shape)}")
    return CaptionCounts(table)
