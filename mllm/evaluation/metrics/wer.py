"""Word error rate: (substitutions + deletions + insertions) / words of the references, over the corpus."""

from mllm.evaluation.metric import METRICS
from mllm.evaluation.metrics.cer import ErrorRate


@METRICS.register("wer")
class Wer(ErrorRate):
    unit = "words"
