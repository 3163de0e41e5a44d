"""DocVQA, validation split: questions about scanned documents (Mathew et al. 2021)."""

from pathlib import Path

from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import SHORT_ANSWER, Card, OfficialBenchmark, Record


class _Question(Record):
    questionId: int
    question: str
    answers: list[str]
    image: str
    question_types: tuple[str, ...] = ()


class _Questions(Record):
    data: list[_Question]


@BENCHMARKS.register("docvqa")
class DocVqa(OfficialBenchmark):
    folder = "docvqa"
    metric = "anls"
    suffix = SHORT_ANSWER
    max_new_tokens = 32
    card = Card(
        title="DocVQA val",
        questions="5,349 about 1,286 pages",
        files=("val_v1.0_withQT.json or val_v1.0.json", "documents/*.png"),
        source="https://rrc.cvc.uab.es/?ch=17 (free registration)",
        size="1 GB",
        licence="terms of the RRC portal, research",
        protocol="short-answer prompt as in lmms-eval; ANLS",
    )

    def items(self, data: Path) -> list[Item]:
        questions = self.read(self.find(data, "val_v1.0_withQT.json", "val_v1.0.json"), _Questions).data
        return [
            Item(
                str(q.questionId),
                data / self.folder / q.image,
                q.question,
                tuple(q.answers),
                q.question_types[0] if q.question_types else "all",
                group=q.image,
            )
            for q in questions
        ]
