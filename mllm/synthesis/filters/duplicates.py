"""Copies: the same question about the same image, the same conversation, and long texts that are nearly the same."""

import hashlib
import re
import sqlite3

import numpy as np

from mllm.errors import UserError
from mllm.synthesis.filters.base import Candidate

PERMUTATIONS = 128
SHINGLE_WORDS = 3
LONG_WORDS = 20


class Seen:
    """A set of (kind, key) in a temporary SQLite file, so that memory doesn't grow with the run."""

    def __init__(self) -> None:
        # An empty name is SQLite's own temporary file: in memory while small, deleted when closed.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("CREATE TABLE seen (kind TEXT, key BLOB, value BLOB, PRIMARY KEY (kind, key)) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def add(self, kind: str, text: str, value: bytes = b"") -> bool:
        """Whether `text` is new among its kind; the first keeps its value."""
        row = (kind, hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest(), value)
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", row).rowcount == 1

    def value(self, kind: str, text: str) -> bytes | None:
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        row = self._db.execute("SELECT value FROM seen WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        return row[0] if row else None


def normalized(text: str) -> str:
    """Lower case, words only, single blanks."""
    return " ".join(re.findall(r"\w+", text.lower()))


class Duplicate:
    """A question asked of its image before (also within one conversation); of a pair, the same question and answers."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def __call__(self, candidate: Candidate) -> str | None:
        context = candidate.request.prompt.context
        image = f"{context.source}\n{context.image}"
        asked = [normalized(question) for question, _ in candidate.turns]
        if candidate.pair is not None:
            asked = [normalized(candidate.text)]
        if len(set(asked)) < len(asked):
            return "asks the same question twice"
        known = next((q for q in asked if self._seen.value("question", f"{image}\n{q}") is not None), None)
        if known is not None:
            return f"the image was asked before: {known}"
        for question in asked:
            self._seen.add("question", f"{image}\n{question}")
        return None


class NearDuplicate:
    """A text of at least 20 words whose word triples are, to `similarity` (Jaccard), those of an earlier one.

    Short answers recur over images by their nature; long ones that do are canned. MinHash (Broder 1997) with bands
    that find a pair at the similarity with a probability of at least 95 %, and the signatures compared.
    """

    def __init__(self, seen: Seen, similarity: float) -> None:
        """Raises UserError without datasketch."""
        try:
            from datasketch import MinHash
        except ImportError:
            raise UserError(
                "the filter near_duplicate needs datasketch; pip install 'mllm[synth]', or skip it"
            ) from None
        self._seen, self._similarity = seen, similarity
        self._new = MinHash(PERMUTATIONS, seed=1)
        self._kept = 0
        self._rows = max(r for r in range(1, 65) if 1 - (1 - similarity**r) ** (PERMUTATIONS // r) >= 0.95)

    def __call__(self, candidate: Candidate) -> str | None:
        words = normalized(candidate.text).split()
        # Pairs of one image are alike by their nature, and differ in the mistake.
        if len(words) < LONG_WORDS or candidate.pair is not None:
            return None
        signature = self._new.copy()
        shingles = {" ".join(words[n : n + SHINGLE_WORDS]) for n in range(len(words) - SHINGLE_WORDS + 1)}
        signature.update_batch([shingle.encode() for shingle in shingles])
        values = np.asarray(signature.hashvalues).astype(np.uint32)
        bands = [
            f"{start}:{values[start : start + self._rows].tobytes().hex()}"
            for start in range(0, PERMUTATIONS - self._rows + 1, self._rows)
        ]
        found = [self._seen.value("band", band) for band in bands]
        for owner in dict.fromkeys(number.decode() for number in found if number is not None):
            earlier = np.frombuffer(self._seen.value("signature", owner) or b"", np.uint32)
            alike = float(np.mean(earlier == values))
            if alike >= self._similarity:
                return f"{100 * alike:.0f} % like an earlier one"
        for band in bands:
            self._seen.add("band", band, str(self._kept).encode())
        self._seen.add("signature", str(self._kept), values.tobytes())
        self._kept += 1
        return None
