"""Error rates of transcripts: (substitutions + deletions + insertions) / length of the references, over the corpus."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from mllm.errors import UserError
from mllm.evaluation.metric import METRICS, Line, Metric, Result


class TranscriptLine(Line):
    """One reference a line."""

    references: Annotated[
        list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v), Field(min_length=1, max_length=1)
    ]


class ErrorRate(Metric):
    """An error rate of jiwer's; `score` is 0 for a perfect text, which alone is right, and may exceed 1."""

    line = TranscriptLine
    lower_is_better = True
    right_at = 0.0
    unit: ClassVar[str]

    def score(self, lines: Sequence[TranscriptLine]) -> Result:
        try:
            import jiwer
        except ImportError:
            raise UserError("this metric needs jiwer: pip install 'mllm[eval]'") from None

        process = jiwer.process_characters if self.unit == "characters" else jiwer.process_words
        rates, errors, length = [], 0, 0
        for line in lines:
            # An empty reference or answer has nothing to align, and releases of jiwer differ over it.
            reference, answer = line.references[0].strip(), line.prediction.strip()
            if reference:
                out = process(reference, answer)
                wrong, own = out.substitutions + out.deletions + out.insertions, out.hits
                own += out.substitutions + out.deletions
            else:
                wrong, own = len(answer if self.unit == "characters" else answer.split()), 0
            rates.append(wrong / own if own else float(wrong > 0))
            errors, length = errors + wrong, length + own
        if not length:
            raise UserError(f"every reference is empty, so there is no rate over their {self.unit}")
        return Result({"score": errors / length, "errors": errors, self.unit: length}, rates)


@METRICS.register("cer")
class CharacterErrorScore(ErrorRate):
    unit = "characters"


@METRICS.register("wer")
class WordErrorScore(ErrorRate):
    unit = "words"
