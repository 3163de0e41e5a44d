"""HallusionBench: one question about a figure, about the same figure changed, and without any (Guan et al. 2024).

Checked against the authors' `utils.py` on their questions, with answers read by rule: they have GPT-4 say whether an answer
is right, wrong or unclear. VLMEvalKit reads yes or no as is done here, and leaves questions without a figure out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import RootModel

from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Id, Line, Metric, Result, mean
from mllm.evaluation.metrics.closed import YesOrNo
from mllm.evaluation.release import SHORT_ANSWER, Record

GOLD = {"0": "no", "1": "yes"}
NO_FIGURE, CHANGED = "0", "2"
_MARKS = str.maketrans({mark: " " for mark in ';/[]"{}()=+\\_-><@`,?!.:*'})


class HallusionLine(Line):
    """`category` is VD (the figure is needed) or VS (it adds to what is known); `set` and `figure` say what is shown.

    `question` is one question over all figures of a set; `visual_input` is 0 without a figure, 1 for the figure as it was
    found, 2 for a changed one.
    """

    references: YesOrNo
    category: Literal["VD", "VS"]
    subcategory: str
    set: Id
    figure: Id
    question: Id
    visual_input: Literal["0", "1", "2"]

    @property
    def said(self) -> bool | None:
        return read_yes_or_no(self.prediction)

    @property
    def is_right(self) -> bool:
        """Whether the answer is the reference; without a figure one that says neither is right, too, of category VS."""
        if self.said is None:
            return self.category == "VS" and self.figure == NO_FIGURE
        return self.said == (self.references == ["yes"])


def read_yes_or_no(answer: str) -> bool | None:
    """Whether yes is among the words of an answer, and no isn't, or the other way round; None for both and for neither."""
    words = answer.lower().translate(_MARKS).split()
    if ("yes" in words) == ("no" in words):
        return None
    return "yes" in words


Key = Callable[[HallusionLine], tuple[str, ...] | None]


def _by_figure(line: HallusionLine) -> tuple[str, ...] | None:
    """What is consistent about one figure; nothing is shown of category VS where the figure is number 0."""
    if line.category == "VS" and line.figure == NO_FIGURE:
        return None
    return (line.category, line.subcategory, line.set, line.figure)


def _by_question(line: HallusionLine) -> tuple[str, ...]:
    return (line.category, line.subcategory, line.set, line.question)


def _whole(lines: Sequence[HallusionLine], key: Key) -> float:
    """The share of groups whose answers are all right; 0 where there is none."""
    groups: dict[tuple[str, ...], list[bool]] = {}
    for line in lines:
        name = key(line)
        if name is not None:
            groups.setdefault(name, []).append(line.is_right)
    return mean([float(all(own)) for own in groups.values()]) if groups else 0.0


def _accuracies(lines: Sequence[HallusionLine]) -> dict[str, float]:
    easy = [line for line in lines if line.visual_input != CHANGED]
    hard = [line for line in lines if line.visual_input == CHANGED]
    return {
        "question_accuracy": mean([float(line.is_right) for line in lines]) if lines else 0.0,
        "figure_accuracy": _whole(lines, _by_figure),
        "pair_accuracy": _whole(lines, _by_question),
        "easy_pair_accuracy": _whole(easy, _by_question),
        "hard_pair_accuracy": _whole(hard, _by_question),
    }


@METRICS.register("hallusionbench")
class HallusionScore(Metric):
    """Accuracy over questions, figures and pairs (one question over all figures of its set); `score` is the first.

    `with_figure` has VLMEvalKit's three of questions that show one: aAcc, fAcc, qAcc. A line scores alone.
    """

    line = HallusionLine

    def score(self, lines: Sequence[HallusionLine]) -> Result:
        scores: dict[str, Any] = _accuracies(lines)
        pictured = [line for line in lines if line.visual_input != "0"]
        scores["with_figure"] = {
            "aAcc": mean([float(line.is_right) for line in pictured]) if pictured else 0.0,
            "fAcc": _whole(pictured, _by_figure),
            "qAcc": _whole(pictured, _by_question),
        }
        kinds = dict.fromkeys(line.category for line in lines)
        scores["by_category"] = {kind: _accuracies([line for line in lines if line.category == kind]) for kind in kinds}
        unread = sum(line.said is None for line in lines)
        notes = (f"{unread} answer(s) say neither yes nor no, or both",) if unread else ()
        scores = {"score": scores["question_accuracy"]} | scores
        return Result(scores, [float(line.is_right) for line in lines], notes)


class _Question(Record):
    category: Literal["VD", "VS"]
    subcategory: str
    visual_input: Literal["0", "1", "2"]
    set_id: str
    figure_id: str
    question_id: str
    question: str
    gt_answer: Literal["0", "1"]
    filename: str | None


class _Questions(RootModel[list[_Question]]):
    pass


def _figure(root: Path, name: str) -> Path:
    """A figure in the archive's own folder, or where the archive's folders lie without it."""
    return root / name if (root / name).is_file() else root / "hallusion_bench" / name


@BENCHMARKS.register("hallusionbench")
class HallusionBench(Benchmark):
    folder = "hallusionbench"
    metric = "hallusionbench"
    suffix = SHORT_ANSWER
    needs_whole_groups = True
    card = Card(
        title="HallusionBench",
        questions="1,129, of which 951 about 346 figures",
        files=("HallusionBench.json", "hallusion_bench/{category}/{subcategory}/*.png"),
        source="https://github.com/tianyi-lab/HallusionBench (figures: a Google Drive archive)",
        size="0.4 MB of text, 0.1 GB of figures",
        licence="BSD-3-Clause; figures by their sources' terms",
        protocol="LLaVA-1.5's short-answer prompt; yes or no by rule in place of the authors' GPT-4; their accuracies over "
        "questions, figures and pairs",
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, "HallusionBench.json")
        return [self._item(data / self.folder, question) for question in self.read(path, _Questions).root]

    def _item(self, root: Path, question: _Question) -> Item:
        group = f"{question.category}/{question.subcategory}/{question.set_id}"
        fields = {
            "category": question.category,
            "subcategory": question.subcategory,
            "set": question.set_id,
            "figure": question.figure_id,
            "question": question.question_id,
            "visual_input": question.visual_input,
            "options": ["Yes", "No"],
        }
        return Item(
            f"{group}/{question.figure_id}/{question.question_id}",
            () if question.filename is None else shown(_figure(root, question.filename)),
            question.question,
            (GOLD[question.gt_answer],),
            f"{question.category} {question.subcategory}",
            group,
            fields,
        )
