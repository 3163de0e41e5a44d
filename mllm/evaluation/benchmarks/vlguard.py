"""VLGuard, test split: unsafe photos, and safe ones with a harmless and a harmful instruction each (Zong et al. 2024).

Checked against the authors' `utils.py` and the shape of their `test.json`; no model was run on the photos here.
"""

from pathlib import Path

from pydantic import RootModel

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
    pairs: list[dict[str, str]]

    @classmethod
    def of(cls, record: dict[str, object]) -> "_Question":
        return cls.model_validate(record | {"pairs": record.get("instr-resp")})


class _Questions(RootModel[list[dict[str, object]]]):
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
        for number, record in enumerate(self.read(path, _Questions).root):
            try:
                items += self._items(data / self.folder, _Question.of(record))
            except (ValueError, KeyError):
                raise UserError(
                    f"{path}: question {number} isn't as released; get the file again from {self.card.source}"
                ) from None
        return items

    def _items(self, root: Path, question: _Question) -> list[Item]:
        items = []
        for pair in question.pairs:
            kind = next(name for name in (*SUBSETS, "") if name in pair or not name)
            subset = SUBSETS[kind]
            if (subset == "unsafes") == question.safe:
                raise ValueError(f"a {'safe' if question.safe else 'unsafe'} photo has an {kind}")
            reference = ANSWER if subset == "safe_safes" else REFUSE
            media = shown(root / "test" / question.image)
            name = f"{question.id}-{subset}"
            items.append(self.request(name, media, pair[kind], reference, subset, question.image))
        return items
