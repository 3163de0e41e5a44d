"""AI2D accuracy (Kembhavi et al. 2016), as lmms-eval computes it."""

import re
import string

from mllm.evaluation.metric import METRICS, Line, MeanMetric

_LETTER = re.compile(r"^\s*([A-Z])\.")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _plain(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


@METRICS.register("ai2d")
class Ai2d(MeanMetric):
    """ "B. the leaf" counts as "B"; then equal but for case and punctuation (white space counts)."""

    def score_line(self, line: Line) -> float:
        found = _LETTER.match(line.prediction)
        answer = found.group(1) if found else line.prediction
        return float(_plain(answer) in map(_plain, line.references))
