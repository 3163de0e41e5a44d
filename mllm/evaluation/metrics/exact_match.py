"""Exact match of short answers."""

from collections.abc import Sequence

from mllm.evaluation.metric import METRICS, Line, MeanMetric


def normalize_answer(text: str) -> str:
    """Lower case, no white space around it and no full stop at its end."""
    return text.strip().rstrip(".").strip().lower()


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 if the normalized answer equals any normalized reference, else 0.0."""
    return float(normalize_answer(answer) in {normalize_answer(reference) for reference in references})


class ExactMatchLine(Line):
    type: str | None = None


@METRICS.register("exact_match")
class ExactMatch(MeanMetric):
    """Equality of short answers but for case, white space around them and a full stop at their end."""

    line = ExactMatchLine
    by = ("type",)

    def score_line(self, line: ExactMatchLine) -> float:
        return exact_match(line.prediction, line.references)
