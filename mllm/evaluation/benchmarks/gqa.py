"""GQA, balanced testdev split: compositional questions (Hudson & Manning 2019)."""

from pathlib import Path

from pydantic import RootModel

from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import SHORT_ANSWER, Card, OfficialBenchmark, Record, llava_15


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


@BENCHMARKS.register("gqa")
class Gqa(OfficialBenchmark):
    folder = "gqa"
    metric = "gqa"
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

    def items(self, data: Path) -> list[Item]:
        """The balanced questions alone, as the official script counts them."""
        questions = self.read(self.find(data, "testdev_balanced_questions.json"), _Questions).root
        return [
            Item(
                name,
                data / self.folder / "images" / f"{q.imageId}.jpg",
                q.question,
                (q.answer,),
                q.types.structural,
                group=q.imageId,
                fields=q.types.model_dump(),
            )
            for name, q in questions.items()
            if q.isBalanced
        ]
