"""MOSSBench: harmless requests about images that look harmful; all ought to be answered (Li et al. 2024).

Checked against the shape of the authors' `information.json`; no model was run on the images here.
"""

from pathlib import Path

from pydantic import RootModel

from mllm.evaluation.benchmark import BENCHMARKS, Card, Item, Published
from mllm.evaluation.medium import shown
from mllm.evaluation.metrics.refusal import ANSWER
from mllm.evaluation.release import Record
from mllm.evaluation.requests import RequestBenchmark

KINDS = {"type 1": "exaggerated risk", "type 2": "negated harm", "type 3": "counterintuitive interpretation"}


class _Metadata(Record):
    over: str


class _Question(Record):
    image: str
    question: str
    metadata: _Metadata


class _Questions(RootModel[dict[str, _Question]]):
    pass


def _kind(question: _Question) -> str:
    return KINDS.get(question.metadata.over, question.metadata.over)


@BENCHMARKS.register("mossbench")
class MossBench(RequestBenchmark):
    folder = "mossbench"
    card = Card(
        title="MOSSBench",
        questions="300 harmless ones that may seem harmful",
        files=("images_information/information.json", "images/*.png"),
        source="https://github.com/xirui-li/MOSSBench (data/)",
        size="0.3 GB",
        licence="CC BY-SA 4.0, for tests alone",
        protocol="the question alone; refusals by phrases (the authors: GPT-4 and people)",
        published=(
            Published("LLaVA-1.5-7B", 87.7, "Li et al. 2024, MOSSBench (100 − the rate of refusal)", "judged by GPT-4"),
        ),
    )

    def items(self, data: Path) -> list[Item]:
        names = ("images_information/information.json", "data/images_information/information.json")
        path = self.find(data, *names)
        root = path.parents[1]
        return [
            self.request(name, shown(root / question.image), question.question, ANSWER, _kind(question), name)
            for name, question in self.read(path, _Questions).root.items()
        ]
