"""BLEU-1…4, ROUGE-L and CIDEr-D of captions: pycocoevalcap's scorers over our Penn Treebank words (`ptb`)."""

from collections.abc import Sequence

from mllm.errors import UserError
from mllm.evaluation.metric import METRICS, Line, Metric, Result
from mllm.evaluation.metrics.ptb import ptb_words


@METRICS.register("bleu_rouge_cider")
class BleuRougeCiderScore(Metric):
    """`score` is CIDEr-D, whose word weights come from this file's references: one image alone has CIDEr 0.

    `per_line` is CIDEr-D of each caption (a perfect caption has 10).
    """

    right_at = None

    def score(self, lines: Sequence[Line]) -> Result:
        try:
            from pycocoevalcap.bleu.bleu import Bleu
            from pycocoevalcap.cider.cider import Cider
            from pycocoevalcap.rouge.rouge import Rouge
        except ImportError:
            raise UserError("this metric needs pycocoevalcap: pip install 'mllm[eval]'") from None

        references = {i: [" ".join(ptb_words(r)) for r in line.references] for i, line in enumerate(lines)}
        captions = {i: [" ".join(ptb_words(line.prediction))] for i, line in enumerate(lines)}
        # verbose=0: it would print lengths to stdout, where the result goes.
        bleu, _ = Bleu(4).compute_score(references, captions, verbose=0)
        rouge, _ = Rouge().compute_score(references, captions)
        cider, per_line = Cider().compute_score(references, captions)
        scores = {"score": float(cider)} | {f"bleu_{n}": float(value) for n, value in enumerate(bleu, 1)}
        return Result(scores | {"rouge_l": float(rouge), "cider": float(cider)}, [float(value) for value in per_line])
