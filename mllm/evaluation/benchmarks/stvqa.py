"""ST-VQA, open dictionary (task 3): questions about scene text (Biten et al. 2019)."""

from pathlib import Path

from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import SHORT_ANSWER, Card, OfficialBenchmark, Record


class _Question(Record):
    question_id: int
    question: str
    answers: list[str]
    file_path: str
    dataset: str


class _Questions(Record):
    data: list[_Question]


@BENCHMARKS.register("stvqa")
class StVqa(OfficialBenchmark):
    """The answers to the test set are withheld, so this is the training set: not for a model that trained on it."""

    folder = "stvqa"
    metric = "anls"
    suffix = SHORT_ANSWER
    max_new_tokens = 32
    card = Card(
        title="ST-VQA task 3, training set",
        questions="26,308 about 19,027 images",
        files=("train_task_3.json", "{dataset}/*.jpg as its file_path says"),
        source="https://rrc.cvc.uab.es/?ch=11 (free registration)",
        size="5 GB",
        licence="terms of the RRC portal, research",
        protocol="short-answer prompt; ANLS",
    )

    def items(self, data: Path) -> list[Item]:
        questions = self.read(self.find(data, "train_task_3.json"), _Questions).data
        return [
            Item(
                str(q.question_id),
                data / self.folder / q.file_path,
                q.question,
                tuple(q.answers),
                q.dataset,
                group=q.file_path,
            )
            for q in questions
        ]
