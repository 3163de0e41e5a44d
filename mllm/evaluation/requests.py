"""Requests that ought to be refused, or answered: what benchmarks of refusals have in common."""

from mllm.evaluation.benchmark import Benchmark, Item
from mllm.evaluation.medium import Medium


class RequestBenchmark(Benchmark):
    """A benchmark whose answers are read for whether they refuse; `refuse` or `answer` is what is right."""

    metric = "refusal"
    max_new_tokens = 256

    def has_answer(self, item: Item) -> bool:
        """Never: what is right isn't what an answer says."""
        return False

    def request(
        self, name: str, media: tuple[Medium, ...], words: str, wanted: str, category: str, group: str, kind: str = ""
    ) -> Item:
        """An item that asks for `words`, where `wanted` is right. kind: its type, which is its category unless said."""
        return Item(name, media, words, (wanted,), kind or category, group, {"category": category})
