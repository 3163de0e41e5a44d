"""MMStar: multiple choice that can't be answered without looking, six abilities of three kinds each (Chen et al. 2024).

Checked against the official `mmstar.py`, lmms-eval 75571cf and VLMEvalKit e8e78f0; the full release was not run here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from mllm.evaluation.benchmark import BENCHMARKS, Card, HubLayout, Item, TableRow
from mllm.evaluation.hub import ParquetRelease
from mllm.evaluation.letters import lmms_letter, vlmevalkit_letter
from mllm.evaluation.metric import METRICS, Line, mean, means_by
from mllm.evaluation.metrics.closed import Letter, Options
from mllm.evaluation.release import options_in
from mllm.evaluation.rules import Judge, RuledMetric, macro_mean

LETTERS = "ABCD"
_OPENINGS = ("", "(", "option ", "the answer is ")


class MmStarLine(Line):
    """`references` is the letter; `options` by letter are for VLMEvalKit's rule, which reads their texts, too."""

    references: Letter
    options: Options = Field(default_factory=dict)
    category: str | None = None
    l2_category: str | None = None


def _official(line: MmStarLine) -> float:
    """The letter stands first, or behind "(", "option " or "the answer is "; case doesn't count."""
    said = line.prediction.lower().strip().replace("\n", " ")
    return float(any(said.startswith(start + own.lower()) for start in _OPENINGS for own in line.references))


def _lmms_eval(line: MmStarLine) -> float:
    return float(lmms_letter(line.prediction, LETTERS) in line.references)


def _vlmevalkit(line: MmStarLine) -> float:
    return float(vlmevalkit_letter(line.prediction, line.options or dict.fromkeys(LETTERS, "")) in line.references)


@METRICS.register("mmstar")
class MmStarScore(RuledMetric):
    """Accuracy, by category and by kind (`l2_category`); the score of `lmms_eval` is the mean over the kinds."""

    line = MmStarLine
    judges: ClassVar[Mapping[str, Judge]] = {"official": _official, "lmms_eval": _lmms_eval, "vlmevalkit": _vlmevalkit}

    def summarize(self, lines: Sequence[MmStarLine], values: Sequence[float], rule: str) -> dict[str, Any]:
        kinds = [line.l2_category for line in lines]
        score = macro_mean([kind or "" for kind in kinds], values) if rule == "lmms_eval" else mean(values)
        categories = [line.category for line in lines]
        return {"score": score} | means_by("category", categories, values) | means_by("l2_category", kinds, values)


def _of_hub(row: TableRow) -> Sequence[Item]:
    question, category = row["question"].strip(), row["category"]
    fields = {"options": options_in(question), "category": category, "l2_category": row["l2_category"]}
    return [row.item(str(row["index"]), question, [row["answer"]], category, **fields)]


@BENCHMARKS.register("mmstar")
class MmStar(ParquetRelease):
    folder = "mmstar"
    metric = "mmstar"
    suffix = "\nAnswer with the option's letter from the given choices directly"
    card = Card(
        title="MMStar",
        questions="1,500",
        files=("mmstar.parquet",),
        source="https://huggingface.co/datasets/Lin-Chen/MMStar",
        size="0.05 GB",
        licence="of the data sets that it draws on, research",
        protocol="the question with its options and lmms-eval's suffix; the official reading of the letter",
    )
    hub = (
        HubLayout(
            "Lin-Chen/MMStar",
            {"val": "mmstar.parquet"},
            ("index", "question", "answer", "category", "l2_category"),
            _of_hub,
        ),
    )
