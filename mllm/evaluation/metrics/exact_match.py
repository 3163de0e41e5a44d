"""Exact match of short answers."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from mllm.evaluation.metric import METRICS, Line, MeanMetric

# One spelling for marks that keyboards and models write in several ways.
_MARKS = str.maketrans(
    {**dict.fromkeys("‘’‚‛′´`", "'"), **dict.fromkeys("“”„‟″«»", '"'), **dict.fromkeys("‐‑‒–—―−", "-")}
)
# Of Unicode's "other punctuation", what belongs to an answer at its end, as in 50% or 5'.
_KEPT_AT_THE_END = frozenset("%‰‱@#&*/\\'\"†‡§¶")


@lru_cache(maxsize=1 << 16)  # a few words answer most questions
def normalize_answer(text: str) -> str:
    """The form in which answers are compared, for every script.

    Compatible characters are one (NFKC: composed and decomposed accents, full-width digits and letters), quotes and dashes
    have one spelling, case is folded, white space is a single space, and marks that end a sentence or a clause go from the
    end, unless there is nothing else. Characters without a shape, such as a zero-width space, are nothing.
    """
    shaped = "".join(mark for mark in text.translate(_MARKS) if unicodedata.category(mark) != "Cf")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", shaped).casefold())
    words = " ".join(folded.translate(_MARKS).split())
    bare = words
    while bare and (bare[-1] == " " or _ends_a_clause(bare[-1])):
        bare = bare[:-1]
    return bare or words


def _ends_a_clause(mark: str) -> bool:
    return unicodedata.category(mark) == "Po" and mark not in _KEPT_AT_THE_END


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 if the normalized answer equals any normalized reference, else 0.0."""
    return float(normalize_answer(answer) in {normalize_answer(reference) for reference in references})


class ExactMatchLine(Line):
    type: str | None = None


@METRICS.register("exact_match")
class ExactMatchScore(MeanMetric):
    """Equality of short answers but for what `normalize_answer` evens out: case, width, white space, marks at the end."""

    line = ExactMatchLine
    by = ("type",)

    def score_line(self, line: ExactMatchLine) -> float:
        return exact_match(line.prediction, line.references)
