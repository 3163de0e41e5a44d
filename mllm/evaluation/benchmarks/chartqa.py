"""ChartQA, test split: questions written by people and by a machine about charts (Masry et al. 2022)."""

from collections.abc import Sequence

from pydantic import AliasChoices, Field

from mllm.evaluation.benchmark import BENCHMARKS, Card, Columns, Item, TableBenchmark, TableRow, hub_layout
from mllm.evaluation.metric import METRICS, Line, MeanMetric
from mllm.evaluation.release import SHORT_ANSWER

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
class RelaxedScore(MeanMetric):
    """Relaxed accuracy, as pix2struct and lmms-eval compute it."""

    line = ChartQaLine
    by = ("group",)

    def score_line(self, line: ChartQaLine) -> float:
        return float(any(is_relaxed_match(line.prediction, reference) for reference in line.references))


def _by_name(row: TableRow) -> Sequence[Item]:
    kind = row["type"].removesuffix("_test")
    return [row.item(str(row.number), row["question"], [row["answer"]], kind, group=kind)]


def _by_label(row: TableRow) -> Sequence[Item]:
    kind = ("human", "augmented")[row["human_or_machine"]]
    return [row.item(str(row.number), row["query"], row["label"], kind, group=kind)]


@BENCHMARKS.register("chartqa")
class ChartQa(TableBenchmark):
    folder = "chartqa"
    files = (("human", "test/test_human.json"), ("augmented", "test/test_augmented.json"))
    images = "test/png/{}"
    image = "imgname"
    asks = Columns("{split}-{number}", "query", "label", "{split}", {"group": "{split}"})
    metric = "chartqa_relaxed"
    suffix = SHORT_ANSWER
    card = Card(
        title="ChartQA test",
        questions="2,500 (1,250 human, 1,250 augmented)",
        files=("test/test_human.json", "test/test_augmented.json", "test/png/*.png"),
        source="https://github.com/vis-nlp/ChartQA",
        size="0.1 GB for the test split",
        licence="GPL-3.0",
        protocol="short-answer prompt as in lmms-eval; relaxed accuracy, human and augmented apart",
    )
    hub = (
        hub_layout("lmms-lab/ChartQA", "data/test-*.parquet", "type question answer", _by_name),
        hub_layout("HuggingFaceM4/ChartQA", "data/test-*.parquet", "query label human_or_machine", _by_label),
    )
