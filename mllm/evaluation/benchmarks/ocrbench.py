"""OCRBench: a thousand questions about text in images of 29 data sets, a point for each answer found (Liu et al. 2023)."""

from collections.abc import Sequence

from mllm.evaluation.benchmark import BENCHMARKS, Card, Columns, TableBenchmark, hub_layout
from mllm.evaluation.metric import METRICS, Line, MeanMetric, Result

GROUPS = {
    "Regular Text Recognition": "recognition",
    "Irregular Text Recognition": "recognition",
    "Artistic Text Recognition": "recognition",
    "Handwriting Recognition": "recognition",
    "Digit String Recognition": "recognition",
    "Non-Semantic Text Recognition": "recognition",
    "Scene Text-centric VQA": "scene_vqa",
    "Doc-oriented VQA": "doc_vqa",
    "Key Information Extraction": "kie",
    "Handwritten Mathematical Expression Recognition": "hme",
}
FORMULAS = "HME100k"


class OcrBenchLine(Line):
    """`dataset_name` says which rule holds; `type` is the official question type."""

    dataset_name: str
    type: str | None = None


def _clean(text: str, is_formula: bool) -> str:
    """Formulas lose every space and keep their case; all else is lower-cased."""
    text = (text if is_formula else text.lower()).strip().replace("\n", " ")
    return text.replace(" ", "") if is_formula else text


@METRICS.register("ocrbench")
class OcrBenchScore(MeanMetric):
    """A reference found inside the answer is a point. `score` is the sum of points, as published (of 1000 for the whole
    benchmark); `accuracy` its share of the lines.
    """

    line = OcrBenchLine

    def score_line(self, line: OcrBenchLine) -> float:
        is_formula = line.dataset_name == FORMULAS
        prediction = _clean(line.prediction, is_formula)
        return float(any(_clean(reference, is_formula) in prediction for reference in line.references))

    def score(self, lines: Sequence[OcrBenchLine]) -> Result:
        points = super().score(lines).per_line
        groups: dict[str, int] = {}
        for line, point in zip(lines, points, strict=True):
            for name in (GROUPS.get(line.type or ""), line.type):
                if name is not None:
                    groups[name] = groups.get(name, 0) + int(point)
        scores = {"score": int(sum(points)), "accuracy": sum(points) / len(points)}
        return Result(scores | ({"points_by_type": groups} if groups else {}), points)


@BENCHMARKS.register("ocrbench")
class OcrBench(TableBenchmark):
    folder = "ocrbench"
    files = (("test", "OCRBench.json", "OCRBench/OCRBench.json"),)
    images = "OCRBench_Images/{}"
    image = "image_path"
    # Ids repeat from one data set to the next.
    asks = Columns(
        "{number}-{dataset_name}-{id}", type="{type}", fields={"dataset_name": "{dataset_name}", "type": "{type}"}
    )
    metric = "ocrbench"
    max_new_tokens = 100
    card = Card(
        title="OCRBench",
        questions="1,000 about 1,000 images",
        files=("OCRBench.json", "OCRBench_Images/*"),
        source="https://github.com/Yuliang-Liu/MultimodalOCR",
        size="0.1 GB",
        licence="of the 29 data sets it draws on, research",
        protocol="the bare question, 100 new tokens as in the official example; points of 1000",
    )
    hub = (
        hub_layout(
            "echo840/OCRBench",
            "data/test-*.parquet",
            "dataset question question_type answer",
            Columns(
                "{number}",
                answers="answer",
                type="{question_type}",
                fields={"dataset_name": "{dataset}", "type": "{question_type}"},
            ),
        ),
    )
