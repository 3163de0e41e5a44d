"""ChartQA's relaxed accuracy (Masry et al. 2022), as pix2struct and lmms-eval compute it."""

from pydantic import AliasChoices, Field

from mllm.evaluation.metric import METRICS, Line, MeanMetric

TOLERANCE = 0.05


class ChartQaLine(Line):
    """`group` is human or augmented."""

    group: str | None = Field(None, validation_alias=AliasChoices("group", "type"))


def _to_float(text: str) -> float | None:
    """What Python's `float` reads; "12%" is 0.12."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def is_relaxed_match(prediction: str, target: str) -> bool:
    """Numbers within 5% of the target (years too), else equal but for case; a target of 0 is compared as text."""
    number, wanted = _to_float(prediction), _to_float(target)
    if number is not None and wanted:
        return abs(number - wanted) / abs(wanted) <= TOLERANCE
    return prediction.lower() == target.lower()


@METRICS.register("chartqa_relaxed")
class ChartQaRelaxed(MeanMetric):
    line = ChartQaLine
    by = ("group",)

    def score_line(self, line: ChartQaLine) -> float:
        return float(any(is_relaxed_match(line.prediction, reference) for reference in line.references))
