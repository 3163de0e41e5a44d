"""ChartQA, test split: questions written by people and by a machine about charts (Masry et al. 2022)."""

from pathlib import Path

from pydantic import RootModel

from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import SHORT_ANSWER, Card, OfficialBenchmark, Record


class _Question(Record):
    imgname: str
    query: str
    label: str


class _Questions(RootModel[list[_Question]]):
    pass


@BENCHMARKS.register("chartqa")
class ChartQa(OfficialBenchmark):
    folder = "chartqa"
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

    def items(self, data: Path) -> list[Item]:
        items = []
        for kind in ("human", "augmented"):
            questions = self.read(self.find(data, f"test/test_{kind}.json"), _Questions).root
            items += [
                Item(
                    f"{kind}-{index}",
                    data / self.folder / "test" / "png" / q.imgname,
                    q.query,
                    (q.label,),
                    kind,
                    group=q.imgname,
                    fields={"group": kind},
                )
                for index, q in enumerate(questions)
            ]
        return items
