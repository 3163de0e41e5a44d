"""Exact match of short answers."""

from collections.abc import Sequence


def normalize_answer(text: str) -> str:
    """Lower case, no white space around it and no full stop at its end."""
    return text.strip().rstrip(".").strip().lower()


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 if the normalized answer equals any normalized reference, else 0.0."""
    return float(normalize_answer(answer) in {normalize_answer(reference) for reference in references})
