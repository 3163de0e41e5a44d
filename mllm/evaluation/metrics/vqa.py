"""VQAv2 accuracy: an answer counts in full once three *other* people gave it (Antol et al. 2015; Goyal et al. 2017)."""

from collections.abc import Sequence

from mllm.evaluation.metric import METRICS, Line, MeanMetric
from mllm.evaluation.metrics.vqa_text import normalize_vqa, strip_lines


class VqaLine(Line):
    """`references` are the answers of the people asked, usually ten."""

    question_type: str | None = None
    answer_type: str | None = None


def leave_one_out_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Mean over i of min(1, matches among the references other than i / 3)."""
    matches = [reference == prediction for reference in references]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


@METRICS.register("vqa")
class VqaScore(MeanMetric):
    """VQAv2 accuracy with both sides always normalized."""

    line = VqaLine
    is_soft = True
    by = ("question_type", "answer_type")

    def score_line(self, line: VqaLine) -> float:
        return leave_one_out_accuracy(normalize_vqa(line.prediction), [normalize_vqa(r) for r in line.references])


@METRICS.register("vqa_official")
class VqaOfficialScore(MeanMetric):
    """VQAv2 accuracy as the official script computes it.

    Where all references are the same string, neither side is normalized: "Red" against ten "red" scores 0.
    """

    line = VqaLine
    is_soft = True
    by = ("question_type", "answer_type")

    def score_line(self, line: VqaLine) -> float:
        prediction, references = strip_lines(line.prediction), [strip_lines(r) for r in line.references]
        if len(set(references)) > 1:
            prediction, references = normalize_vqa(prediction), [normalize_vqa(r) for r in references]
        return leave_one_out_accuracy(prediction, references)
