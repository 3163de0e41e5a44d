"""OCRBench: a thousand questions about text in images of 29 data sets (Liu et al. 2023)."""

from pathlib import Path

from pydantic import RootModel

from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import Card, OfficialBenchmark, Record


class _Question(Record):
    dataset_name: str
    id: int | str
    image_path: str
    question: str
    answers: str | list[str]
    type: str


class _Questions(RootModel[list[_Question]]):
    pass


@BENCHMARKS.register("ocrbench")
class OcrBench(OfficialBenchmark):
    folder = "ocrbench"
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

    def items(self, data: Path) -> list[Item]:
        questions = self.read(self.find(data, "OCRBench.json", "OCRBench/OCRBench.json"), _Questions).root
        return [
            Item(
                # Ids repeat from one data set to the next.
                f"{index}-{q.dataset_name}-{q.id}",
                data / self.folder / "OCRBench_Images" / q.image_path,
                q.question,
                (q.answers,) if isinstance(q.answers, str) else tuple(q.answers),
                q.type,
                group=q.image_path,
                fields={"dataset_name": q.dataset_name, "type": q.type},
            )
            for index, q in enumerate(questions)
        ]
