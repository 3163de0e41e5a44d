"""AI2D accuracy (Kembhavi et al. 2016), as lmms-eval computes it."""

import re
import string

from mllm.evaluation.metric import METRICS, Line, MeanMetric
from mllm.evaluation.metrics.closed import Letter

_LETTER = re.compile(r"^\s*([A-Z])\.")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _plain(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


class Ai2dLine(Line):
    """`references` is the letter of the right option."""

    references: Letter


@METRICS.register("ai2d")
class Ai2d(MeanMetric):
    """ "B. the leaf" counts as "B"; then equal but for case, punctuation, and white space at the ends."""

    line = Ai2dLine

    def score_line(self, line: Ai2dLine) -> float:
        found = _LETTER.match(line.prediction)
        answer = found.group(1) if found else line.prediction.strip()
        return float(_plain(answer) in map(_plain, line.references))
