"""GQA accuracy (Hudson & Manning 2019)."""

from mllm.evaluation.metric import METRICS, Line, MeanMetric


class GqaLine(Line):
    """`structural`, `semantic` and `detailed` are the question's `types`; structural verify and logical are binary."""

    structural: str | None = None
    semantic: str | None = None
    detailed: str | None = None

    @property
    def form(self) -> str | None:
        """`binary` for questions whose answer is yes or no, else `open`."""
        if self.structural is None:
            return None
        return "binary" if self.structural in ("verify", "logical") else "open"


@METRICS.register("gqa")
class Gqa(MeanMetric):
    """LLaVA's protocol: the prediction loses full stops at its end and its capitals, then equals the reference."""

    line = GqaLine
    by = ("form", "structural", "semantic", "detailed")

    def score_line(self, line: GqaLine) -> float:
        return float(line.prediction.rstrip(".").lower() in line.references)


@METRICS.register("gqa_official")
class GqaOfficial(Gqa):
    """The official script: equality of the strings as they are."""

    def score_line(self, line: GqaLine) -> float:
        return float(line.prediction in line.references)
