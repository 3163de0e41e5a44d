"""easy-VQA, official test split: shape, colour and yes/no questions about one coloured shape."""

from pathlib import Path

from mllm.data.readers.easyvqa import read_easyvqa
from mllm.evaluation.benchmark import BENCHMARKS, Item, MajorityAnswer
from mllm.evaluation.metrics.exact_match import exact_match


@BENCHMARKS.register("easyvqa")
class EasyVqa:
    """`DATA/easyvqa` (holding `train/` and `test/`) if there is one, else the installed easy-vqa package."""

    max_new_tokens = 8
    default_limit: int | None = 1000

    def items(self, data: Path) -> list[Item]:
        return [
            Item(q.id, q.image_path, q.question, (q.answer,), q.type, group=q.image_path.name)
            for q in read_easyvqa(_root(data), "test")
        ]

    def prompt(self, item: Item) -> str:
        return item.question

    def score(self, answer: str, item: Item) -> float:
        return exact_match(answer, item.references)

    def majority(self, data: Path) -> MajorityAnswer:
        return MajorityAnswer((q.question, q.answer) for q in read_easyvqa(_root(data), "train"))


def _root(data: Path) -> Path | None:
    root = data / "easyvqa"
    return root if root.is_dir() else None
