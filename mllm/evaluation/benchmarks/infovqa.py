"""InfographicVQA, validation split: questions about infographics (Mathew et al. 2022)."""

from pathlib import Path

from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import SHORT_ANSWER, Card, OfficialBenchmark, Record


class _Question(Record):
    questionId: int
    question: str
    answers: list[str]
    image_local_name: str


class _Questions(Record):
    data: list[_Question]


@BENCHMARKS.register("infovqa")
class InfoVqa(OfficialBenchmark):
    folder = "infovqa"
    metric = "anls"
    suffix = SHORT_ANSWER
    max_new_tokens = 32
    card = Card(
        title="InfographicVQA val",
        questions="2,801 about 500 images",
        files=("infographicsVQA_val_v1.0_withQT.json or infographicsVQA_val_v1.0.json", "infographicsvqa_images/*"),
        source="https://rrc.cvc.uab.es/?ch=17 (free registration)",
        size="2 GB",
        licence="terms of the RRC portal, research",
        protocol="short-answer prompt as in lmms-eval; ANLS",
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, "infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_val_v1.0.json")
        images = data / self.folder / "infographicsvqa_images"
        return [
            Item(
                str(q.questionId),
                images / q.image_local_name,
                q.question,
                tuple(q.answers),
                "all",
                group=q.image_local_name,
            )
            for q in self.read(path, _Questions).data
        ]
