"""NExT-QA, multiple choice, test split: why, how and when in videos of everyday life (Xiao et al. 2021).

Checked against the official `eval_mc.py`, which scores numbers of options and reads no words, and lmms-eval 75571cf, whose
reading this is; the columns against the official `test.csv`. The full release was not run here.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from pydantic import RootModel, ValidationError

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.letters import guessed, lmms_mmmu_letter
from mllm.evaluation.medium import Medium
from mllm.evaluation.metric import METRICS, MeanMetric, Result, means_by
from mllm.evaluation.metrics.closed import ChoiceLine
from mllm.evaluation.release import LETTER_ANSWER, Record, first_problem, lettered, lettered_lines

GROUPS = {"C": "causal", "T": "temporal", "D": "descriptive"}
PREVIOUS, NEXT = "TP", "TN"


class NextQaLine(ChoiceLine):
    """`type` is CW, CH, TN, TC, DC, DL or DO."""

    type: str | None = None


@METRICS.register("nextqa")
class NextQaScore(MeanMetric):
    """Accuracy, by type and by its group; an answer that names no option is a guess by the question's id."""

    line = NextQaLine
    by = ("type",)

    def score_line(self, line: NextQaLine) -> float:
        letter = lmms_mmmu_letter(line.prediction, line.options)
        return float((letter or guessed(line.options, line.id or line.prediction)) in line.references)

    def score(self, lines: Sequence[NextQaLine]) -> Result:
        result = super().score(lines)
        groups = [GROUPS.get((line.type or "")[:1]) for line in lines]
        guesses = sum(lmms_mmmu_letter(line.prediction, line.options) is None for line in lines)
        notes = (f"{guesses} answer(s) name no option and count as a guess",) if guesses else ()
        return Result(result.scores | means_by("group", groups, result.per_line), result.per_line, notes)


class _Question(Record):
    video: str
    question: str
    answer: int
    qid: str
    type: str
    a0: str
    a1: str
    a2: str
    a3: str
    a4: str


class _Map(RootModel[dict[str, str]]):
    pass


@BENCHMARKS.register("nextqa")
class NextQa(Benchmark):
    """Questions about what came before (TP) count among those about what came next (TN), as in the official script."""

    folder = "nextqa"
    metric = "nextqa"
    suffix = LETTER_ANSWER
    card = Card(
        title="NExT-QA multiple choice, test",
        questions="8,564 about 1,000 videos",
        files=("test.csv", "map_vid_vidorID.json", "NExTVideo/{folder}/{video}.mp4"),
        source="https://github.com/doc-doc/NExT-QA (dataset/nextqa; the videos are linked there)",
        size="1 MB of text, 12 GB of videos",
        licence="MIT; videos by their Flickr terms",
        protocol="lettered options and LLaVA's multiple-choice suffix; the letter as lmms-eval reads it",
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, "test.csv")
        places = self.read(self.find(data, "map_vid_vidorID.json"), _Map).root
        with open(path, encoding="utf-8", newline="") as file:
            return [
                self._item(data, f"{path}:{number}", row, places) for number, row in enumerate(csv.DictReader(file), 2)
            ]

    def _item(self, data: Path, where: str, row: dict[str, str], places: dict[str, str]) -> Item:
        try:
            question = _Question.model_validate(row)
            options = lettered([question.a0, question.a1, question.a2, question.a3, question.a4])
            letter, place = list(options)[question.answer], places[question.video]
        except (ValidationError, IndexError, KeyError) as error:
            problem = first_problem(error) if isinstance(error, ValidationError) else repr(error)
            raise UserError(f"{where}: isn't as released: {problem}; get it again from {self.card.source}") from None
        kind = NEXT if question.type == PREVIOUS else question.type
        video = data / self.folder / "NExTVideo" / f"{place}.mp4"
        return Item(
            f"{question.video}_{question.qid}",
            (Medium(str(video), is_video=True),),
            f"{question.question.strip()}\n{lettered_lines(options)}",
            (letter,),
            kind,
            question.video,
            {"options": options, "type": kind},
        )
