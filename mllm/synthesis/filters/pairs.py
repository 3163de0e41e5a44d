"""Filters of pairs: both answers the same or as good, of unlike lengths, or a chosen one that is less true."""

from mllm.synthesis.filters.base import Candidate
from mllm.synthesis.preferences import length_ratio


class NoDifference:
    """Answers that are equal but for blanks and capitals, and such that a critic scores nearly the same."""

    def __init__(self, min_margin: float) -> None:
        self._min_margin = min_margin

    def __call__(self, candidate: Candidate) -> str | None:
        pair = candidate.pair
        if pair is None:
            return None
        if len({" ".join(answer.lower().split()) for answer in candidate.answers}) == 1:
            return "chosen and rejected are equal"
        if pair.margin is not None and pair.margin < self._min_margin:
            return f"scores differ by {pair.margin:g}, less than {self._min_margin:g}"
        return None


class Unbalanced:
    """Answers of which one has many more words: a model would learn lengths from them."""

    def __init__(self, most: float) -> None:
        self._most = most

    def __call__(self, candidate: Candidate) -> str | None:
        ratio = length_ratio(*candidate.answers) if candidate.pair is not None else 1.0
        return f"one answer has {ratio:.2f} times the words of the other" if ratio > self._most else None


def unverified(candidate: Candidate) -> str | None:
    """A verifier that gives the chosen answer less than the rejected one."""
    if candidate.pair is None:
        return None
    chosen, rejected = candidate.pair.scores.chosen, candidate.pair.scores.rejected
    worse = next((name for name, score in chosen.items() if score < rejected.get(name, score)), None)
    return None if worse is None else f"{worse} is {chosen[worse]:.2f} chosen and {rejected[worse]:.2f} rejected"
