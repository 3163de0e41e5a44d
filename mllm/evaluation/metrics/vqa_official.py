"""VQAv2 accuracy as the official script computes it."""

from mllm.evaluation.metric import METRICS, MeanMetric
from mllm.evaluation.metrics.vqa import VqaLine, leave_one_out_accuracy
from mllm.evaluation.metrics.vqa_text import normalize_vqa, strip_lines


@METRICS.register("vqa_official")
class VqaOfficial(MeanMetric):
    """Where all references are the same string, neither side is normalized: "Red" against ten "red" scores 0."""

    line = VqaLine
    by = ("question_type", "answer_type")

    def score_line(self, line: VqaLine) -> float:
        prediction, references = strip_lines(line.prediction), [strip_lines(r) for r in line.references]
        if len(set(references)) > 1:
            prediction, references = normalize_vqa(prediction), [normalize_vqa(r) for r in references]
        return leave_one_out_accuracy(prediction, references)
