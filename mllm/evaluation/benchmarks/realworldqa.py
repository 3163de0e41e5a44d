"""RealWorldQA: questions about photographs, many from vehicles, that are easy to check (xAI 2024).

xAI published no script. Checked against lmms-eval 75571cf and VLMEvalKit e8e78f0; the full release was not run here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from mllm.evaluation.benchmark import BENCHMARKS, Card, Item, TableRow, hub_layout
from mllm.evaluation.hub import ParquetRelease
from mllm.evaluation.letters import lmms_letter, vlmevalkit_letter
from mllm.evaluation.metric import METRICS, Line, mean, means_by
from mllm.evaluation.metrics.closed import Options
from mllm.evaluation.release import options_in
from mllm.evaluation.rules import Judge, RuledMetric

LETTERS = "ABCD"
CHOICE, WORDS = "multiple-choice", "words"


class RealWorldLine(Line):
    """`references` is a letter or a few words; `options` by letter, none where words are asked for."""

    options: Options = Field(default_factory=dict)

    @property
    def letter(self) -> str | None:
        """The letter that is right, None where words are."""
        answer = self.references[0].strip().upper()
        return answer if answer in tuple(LETTERS) else None


def _by_words(line: RealWorldLine) -> float:
    return float(line.prediction.lower().strip().rstrip(".") == line.references[0].strip().lower())


def _lmms_eval(line: RealWorldLine) -> float:
    if line.letter is None:
        return _by_words(line)
    return float(lmms_letter(line.prediction, LETTERS) == line.letter)


def _vlmevalkit(line: RealWorldLine) -> float:
    """Its own table makes every question multiple choice; words are compared as lmms-eval does here."""
    if line.letter is None:
        return _by_words(line)
    return float(vlmevalkit_letter(line.prediction, line.options or dict.fromkeys(LETTERS, "")) == line.letter)


@METRICS.register("realworldqa")
class RealWorldScore(RuledMetric):
    """Accuracy, also by kind of question. `vlmevalkit` stands without its judge, and reads letters alone."""

    line = RealWorldLine
    judges: ClassVar[Mapping[str, Judge]] = {"lmms_eval": _lmms_eval, "vlmevalkit": _vlmevalkit}

    def summarize(self, lines: Sequence[RealWorldLine], values: Sequence[float], rule: str) -> dict[str, Any]:
        kinds = [WORDS if line.letter is None else CHOICE for line in lines]
        return {"score": mean(values)} | means_by("kind", kinds, values)


def _of_hub(row: TableRow) -> Sequence[Item]:
    question, answer = row["question"].strip(), row["answer"].strip()
    kind = CHOICE if answer.upper() in tuple(LETTERS) else WORDS
    options = options_in(question) if kind == CHOICE else {}
    return [row.item(str(row.number), question, [answer], kind, options=options)]


@BENCHMARKS.register("realworldqa")
class RealWorldQa(ParquetRelease):
    folder = "realworldqa"
    metric = "realworldqa"
    card = Card(
        title="RealWorldQA test",
        questions="765 about 765 images",
        files=("data/test-*.parquet",),
        source="https://huggingface.co/datasets/xai-org/RealworldQA",
        size="0.7 GB",
        licence="CC BY-ND 4.0",
        protocol="the question with its own instruction, 16 new tokens, read as in lmms-eval",
    )
    hub = tuple(
        hub_layout(repository, "data/test-*.parquet", "question answer", _of_hub)
        for repository in ("xai-org/RealworldQA", "lmms-lab/RealWorldQA")
    )
