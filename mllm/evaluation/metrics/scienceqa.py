"""ScienceQA accuracy (Lu et al. 2022), letters read as LLaVA's `eval_science_qa.py` reads them."""

import re
from collections.abc import Sequence

from mllm.evaluation.metric import METRICS, Line, MeanMetric, Result, mean
from mllm.evaluation.metrics.closed import FIRST_LETTERS, FirstLetter

LETTERS = FIRST_LETTERS
# The last character is any character: the original left its dot unescaped.
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


class ScienceQaLine(Line):
    """`references` is the letter of the right choice."""

    references: FirstLetter
    has_image: bool | None = None
    subject: str | None = None


def read_letter(text: str) -> str | None:
    """The answer's letter, None where it has none or more than one."""
    if text in tuple(LETTERS):
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


@METRICS.register("scienceqa")
class ScienceQa(MeanMetric):
    """Accuracy, and `image_accuracy` over the questions that have a picture where lines say so (`has_image`)."""

    line = ScienceQaLine
    by = ("subject",)

    def score_line(self, line: ScienceQaLine) -> float:
        return float(read_letter(line.prediction) in line.references)

    def score(self, lines: Sequence[ScienceQaLine]) -> Result:
        result = super().score(lines)
        seen = [value for line, value in zip(lines, result.per_line, strict=True) if line.has_image]
        return Result(result.scores | ({"image_accuracy": mean(seen)} if seen else {}), result.per_line)
