"""What a benchmark is: its items, its prompt and its scorer. Each is one file in `mllm/evaluation/benchmarks/`."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mllm.registry import Registry


@dataclass(frozen=True)
class Item:
    """One question. `group` names its image within the benchmark: items of a group stand or fall together.

    `image` is a file, a reference to an image inside one (`mllm.media.ref`), or None for a question about text alone;
    `fields` are what the metric's lines need beside the references.
    """

    id: str
    image: Path | str | None
    question: str
    references: tuple[str, ...]
    type: str
    group: str
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


class MajorityAnswer:
    """The predictor that knows the training questions and never looks: the commonest answer to a question's text.

    A text that was never asked in training gets the commonest training answer of all.
    """

    def __init__(self, training: Iterable[tuple[str, str]]) -> None:
        """`training` gives (question, answer) pairs, at least one. Ties go to the answer first in the alphabet."""
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in training:
            answers[question][answer] += 1
        total: Counter[str] = sum(answers.values(), Counter())
        if not total:
            raise ValueError("a majority needs at least one training question")
        self._by_question = {question: _commonest(counts) for question, counts in answers.items()}
        self._overall = _commonest(total)

    def predict(self, question: str) -> str:
        return self._by_question.get(question, self._overall)


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


class Benchmark(Protocol):
    """`max_new_tokens` bounds an answer; `default_limit` is how many items are asked unless the user says (None = all)."""

    max_new_tokens: int
    default_limit: int | None

    def items(self, data: Path) -> list[Item]:
        """Every item, in file order; `data` is the prepared data directory. Raises UserError when files are not right."""
        ...

    def prompt(self, item: Item) -> str:
        """The user's words, as the model was trained to hear them."""
        ...

    def score(self, answer: str, item: Item) -> float:
        """Between 0 and 1."""
        ...

    def majority(self, data: Path) -> MajorityAnswer | None:
        """The majority predictor of the training questions, None where there are none."""
        ...


BENCHMARKS: Registry[type[Benchmark]] = Registry("benchmark")
