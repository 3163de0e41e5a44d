"""TextVQA accuracy (Singh et al. 2019), as LLaVA's `m4c_evaluator.py` computes it."""

from typing import Annotated

from pydantic import Field

from mllm.evaluation.metric import METRICS, Line, MeanMetric
from mllm.evaluation.metrics.vqa import leave_one_out_accuracy
from mllm.evaluation.metrics.vqa_text import normalize_m4c


class TextVqaLine(Line):
    references: Annotated[list[str], Field(min_length=10, max_length=10)]


@METRICS.register("textvqa")
class TextVqa(MeanMetric):
    """Leave-one-out accuracy over exactly ten answers, both sides through the EvalAI processor."""

    line = TextVqaLine

    def score_line(self, line: TextVqaLine) -> float:
        return leave_one_out_accuracy(normalize_m4c(line.prediction), [normalize_m4c(r) for r in line.references])
