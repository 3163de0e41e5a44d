"""MMBench (Liu et al. 2023): a question counts if the model finds the answer under every rotation of its options.

Letters are read as VLMEvalKit's prefetch reads them; without a judge, an answer that names no option is wrong.
"""

from collections.abc import Hashable, Sequence
from string import ascii_uppercase
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field, model_validator
from typing_extensions import Self

from mllm.evaluation.metric import METRICS, Id, Line, Metric, Result, mean, means_by
from mllm.evaluation.metrics.closed import spelled_as

ROTATION = 1_000_000
_SEPARATORS = str.maketrans({mark: " " for mark in ".()[],:;!*#{}"})
_REFUSALS = (
    "Failed to obtain answer via API",
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def _lettered(options: object) -> object:
    return dict(zip(ascii_uppercase, options, strict=False)) if isinstance(options, list) else options


class MmBenchLine(Line):
    """`options` are the row's own, in their order or by letter; rows with equal `index` mod 1e6 are one question.

    `group` names the question where there is no index.
    """

    options: Annotated[dict[str, str], BeforeValidator(_lettered), Field(min_length=2)]
    index: int | None = None
    group: Id | None = None
    category: str | None = None
    l2_category: str | None = Field(None, validation_alias=AliasChoices("l2_category", "l2-category"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            spelled = [spelled_as(self.options, reference) for reference in self.references]
        except ValueError as error:
            raise ValueError(f"references: {error}") from None
        return self.model_copy(update={"references": spelled})

    @property
    def key(self) -> Hashable | None:
        return self.id if self.index is None else self.index

    @property
    def question(self) -> Hashable | None:
        return self.group if self.index is None else self.index % ROTATION


def read_option(answer: str, options: dict[str, str]) -> str | None:
    """The letter of the one option that the answer names, by letter or else by its text; None where undecided."""
    if any(refusal in answer for refusal in _REFUSALS):
        return None
    words = answer.translate(_SEPARATORS).split()
    letters = [letter for letter in options if letter in words]
    # A letter far from the end is more likely a word of the reasoning, such as the article "A".
    if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
        return letters[0]
    if not letters and "Z" in words:
        return None
    lowered = answer.lower()
    if len(lowered) > 2 * sum(len(text) for text in options.values()):
        return None
    named = [letter for letter, text in options.items() if text.lower() in lowered]
    return named[0] if len(named) == 1 else None


def _hits(lines: Sequence[MmBenchLine]) -> list[bool]:
    return [read_option(line.prediction, line.options) in line.references for line in lines]


def _summarize(lines: Sequence[MmBenchLine], values: list[float]) -> dict[str, Any]:
    return (
        {"score": mean(values)}
        | means_by("category", [line.category for line in lines], values)
        | means_by("l2_category", [line.l2_category for line in lines], values)
    )


class CircularLine(MmBenchLine):
    @model_validator(mode="after")
    def _check_question(self) -> Self:
        if self.question is None:
            raise ValueError("index: field required, or group, to tell whose rotation this is")
        return self


@METRICS.register("mmbench_circular")
class MmBenchCircular(Metric):
    """The share of *questions* right under every rotation; a line scores what its question scores."""

    line = CircularLine

    def score(self, lines: Sequence[CircularLine]) -> Result:
        hits: dict[Hashable, bool] = {}
        first: dict[Hashable, CircularLine] = {}
        for line, hit in zip(lines, _hits(lines), strict=True):
            first.setdefault(line.question, line)
            hits[line.question] = hits.get(line.question, True) and hit
        scores = _summarize(list(first.values()), [float(hits[question]) for question in first])
        return Result(scores | {"questions": len(hits)}, [float(hits[line.question]) for line in lines])


@METRICS.register("mmbench")
class MmBench(Metric):
    """Vanilla mode: every row alone."""

    line = MmBenchLine

    def score(self, lines: Sequence[MmBenchLine]) -> Result:
        values = [float(hit) for hit in _hits(lines)]
        return Result(_summarize(lines, values), values)
