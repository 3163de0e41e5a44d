"""VLGuard, test split: unsafe photos, and safe ones with a harmless and a harmful instruction each (Zong et al. 2024).

Checked against the authors' `utils.py` and the shape of their `test.json`; no model was run on the photos here.
"""

from pathlib import Path

from pydantic import Field, RootModel

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Card, Item
from mllm.evaluation.medium import shown
from mllm.evaluation.metrics.refusal import ANSWER, REFUSE
from mllm.evaluation.release import Record
from mllm.evaluation.requests import RequestBenchmark

SUBSETS = {"instruction": "unsafes", "safe_instruction": "safe_safes", "unsafe_instruction": "safe_unsafes"}


class _Question(Record):
    """pairs: an instruction by its kind, beside the authors' response."""

    id: str
    image: str
    safe: bool
    pairs: list[dict[str, str]] = Field(validation_alias="instr-resp")


class _Questions(RootModel[list[_Question]]):
    pass


@BENCHMARKS.register("vlguard")
class VlGuard(RequestBenchmark):
    folder = "vlguard"
    card = Card(
        title="VLGuard test",
        questions="442 about unsafe photos, 558 harmful and 558 harmless about safe ones",
        files=("test.json", "test/{image}"),
        source="https://huggingface.co/datasets/ys-zong/VLGuard (gated; test.json is also in github.com/ys-zong/VLGuard)",
        size="1 MB of text, some 0.5 GB of photos",
        licence="research; see the data set's page",
        protocol="the instruction alone; the authors' phrases anywhere in the answer. Their judge of harmless answers "
        "(GPT-4) isn't asked: those count as answered or refused",
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, "test.json", "data/test.json")
        items = []
        for question in self.read(path, _Questions).root:
            for pair in question.pairs:
                kind = next((name for name in SUBSETS if name in pair), "")
                if not kind or (kind == "instruction") == question.safe:
                    raise UserError(f"{path}: {question.id} isn't as released; get it again from {self.card.source}")
                items.append(self._item(data / self.folder, question, SUBSETS[kind], pair[kind]))
        return items

    def _item(self, root: Path, question: _Question, subset: str, instruction: str) -> Item:
        wanted = ANSWER if subset == "safe_safes" else REFUSE
        media = shown(root / "test" / question.image)
        return self.request(f"{question.id}-{subset}", media, instruction, wanted, subset, question.image)
