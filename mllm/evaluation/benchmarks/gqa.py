"""GQA, balanced testdev split: compositional questions (Hudson & Manning 2019)."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import RootModel

from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, HubLayout, Item, TableRow, llava_15
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Line, MeanMetric
from mllm.evaluation.release import SHORT_ANSWER, Record


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
class GqaScore(MeanMetric):
    """LLaVA's protocol: the prediction loses full stops at its end and its capitals, then equals the reference."""

    line = GqaLine
    by = ("form", "structural", "semantic", "detailed")

    def score_line(self, line: GqaLine) -> float:
        return float(line.prediction.rstrip(".").lower() in line.references)


@METRICS.register("gqa_official")
class GqaOfficialScore(GqaScore):
    """The official script: equality of the strings as they are."""

    def score_line(self, line: GqaLine) -> float:
        return float(line.prediction in line.references)


class _Types(Record):
    structural: str
    semantic: str
    detailed: str


class _Question(Record):
    question: str
    imageId: str
    answer: str
    isBalanced: bool
    types: _Types


class _Questions(RootModel[dict[str, _Question]]):
    pass


def _of_hub(row: TableRow) -> Sequence[Item]:
    if not row["isBalanced"]:
        return []
    types = {name: row["types"][name] for name in ("structural", "semantic", "detailed")}
    return [row.item(row["id"], row["question"], [row["answer"]], types["structural"], **types)]


@BENCHMARKS.register("gqa")
class Gqa(Benchmark):
    folder = "gqa"
    metric = "gqa"
    mirrors = True
    suffix = SHORT_ANSWER
    card = Card(
        title="GQA testdev balanced",
        questions="12,578 about 398 images",
        files=("testdev_balanced_questions.json", "images/*.jpg"),
        source="https://cs.stanford.edu/people/dorarad/gqa/download.html",
        size="1.4 GB of text, 20 GB of images",
        licence="CC BY 4.0",
        protocol="LLaVA-1.5's short-answer prompt and its reading of the answer",
        published=llava_15(62.0, 63.3),
    )
    hub = (
        HubLayout(
            "lmms-lab/GQA",
            {"testdev": "testdev_balanced_instructions/testdev-*.parquet"},
            ("id", "imageId", "question", "answer", "isBalanced", "types"),
            _of_hub,
            "{imageId}",
            "testdev_balanced_images/testdev-*.parquet",
        ),
    )

    def items(self, data: Path) -> list[Item]:
        """The balanced questions alone, as the official script counts them."""
        questions = self.read(self.find(data, "testdev_balanced_questions.json"), _Questions).root
        return [
            Item(
                name,
                shown(data / self.folder / "images" / f"{q.imageId}.jpg"),
                q.question,
                (q.answer,),
                q.types.structural,
                group=q.imageId,
                fields=q.types.model_dump(),
            )
            for name, q in questions.items()
            if q.isBalanced
        ]
