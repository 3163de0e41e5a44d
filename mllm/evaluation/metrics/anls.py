"""Average normalized Levenshtein similarity of DocVQA, InfographicVQA and ST-VQA (Biten et al. 2019), as the RRC server."""

from mllm.errors import UserError
from mllm.evaluation.metric import METRICS, Line, MeanMetric

THRESHOLD = 0.5


class AnlsLine(Line):
    question_type: str | None = None


def edit_distance(first: str, second: str) -> int:
    """How many characters have to be inserted, deleted or replaced. Raises UserError where rapidfuzz is missing."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise UserError("this metric needs rapidfuzz: pip install 'mllm[eval]'") from None
    return int(Levenshtein.distance(first, second))


def _distance(prediction: str, reference: str) -> float:
    """Edit distance of the cleaned strings over the length of the longer raw one; 0 where both are empty."""
    length = max(len(prediction.upper()), len(reference.upper()))
    return edit_distance(_clean(prediction), _clean(reference)) / length if length else 0.0


def _clean(text: str) -> str:
    return " ".join(text.lower().split())


@METRICS.register("anls")
class AnlsScore(MeanMetric):
    """1 − the smallest distance to a reference; under 0.5 it is 0."""

    line = AnlsLine
    by = ("question_type",)

    def score_line(self, line: AnlsLine) -> float:
        similarity = 1 - min(_distance(line.prediction, reference) for reference in line.references)
        return similarity if similarity >= THRESHOLD else 0.0
