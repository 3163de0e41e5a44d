"""Measuring how well a caption fits an image, where a benchmark compares fits: the log-probability of an answer.

A model that says in one number how alike image and caption are has its own; a language model has an answer's probability.
There are two in use, and neither is "the" score: how sure it is of "Yes" to "Does this figure show …?" (VQAScore, Lin et
al. 2024), and how likely the caption is as its answer (VisualGPTScore, Lin et al. 2023), which a caption that is likelier
without looking has an advantage in. The answer's ending counts in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from mllm.evaluation.benchmark import Benchmark, Item
from mllm.evaluation.medium import Medium
from mllm.evaluation.metric import Line
from mllm.evaluation.metrics.closed import YesOrNo


def _as_number(value: object) -> object:
    text = repr(value) if type(value) in (int, float) else value
    if isinstance(text, str) and text:
        try:
            is_finite = isfinite(float(text))
        except ValueError:
            is_finite = False
        if not is_finite:
            raise ValueError(f"{text[:40]!r} is no finite number")
    return text


class FitLine(Line):
    """`prediction` is a number, greater for a better fit, an empty one less than all; `references` says what is true."""

    prediction: Annotated[str, BeforeValidator(_as_number)]
    references: YesOrNo

    @property
    def fit(self) -> float:
        return float(self.prediction or "-inf")


@dataclass(frozen=True)
class Way:
    """What is asked of a caption, and the answer whose log-probability is its fit; `{}` in either is the caption."""

    question: str
    answer: str


BY_YES = Way('Does this figure show "{}"? Please answer yes or no.', "Yes")
BY_CAPTION = Way("Provide a one-sentence caption for the provided image.", "{}")


class FitBenchmark(Benchmark):
    """A benchmark that compares how well captions fit images; `way` says how that is measured."""

    measures = True
    needs_whole_groups = True
    max_new_tokens = 1
    way: ClassVar[Way] = BY_YES

    def fit_item(
        self,
        name: str,
        media: Sequence[Medium],
        caption: str,
        is_true: bool,
        kind: str,
        group: str,
        /,
        **fields: Any,
    ) -> Item:
        """An item about one caption and one image; fields: what the metric's line needs beside."""
        question, answer = (text.replace("{}", caption.strip()) for text in (self.way.question, self.way.answer))
        references = ("yes" if is_true else "no",)
        return Item(name, tuple(media), question, references, kind, group, {"options": [answer]} | fields)
