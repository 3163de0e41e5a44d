"""ScienceQA, test split: multiple-choice questions of school science, half of them with an image (Lu et al. 2022).

Letters are read as LLaVA's `eval_science_qa.py` reads them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase

from pydantic import RootModel

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item, TableRow, hub_layout
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Line, MeanMetric, Result, mean
from mllm.evaluation.metrics.closed import FIRST_LETTERS, FirstLetter
from mllm.evaluation.release import LETTER_ANSWER, Record, lettered, lettered_lines

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
class ScienceQaScore(MeanMetric):
    """Accuracy, and `image_accuracy` over the questions that have a picture where lines say so (`has_image`)."""

    line = ScienceQaLine
    by = ("subject",)

    def score_line(self, line: ScienceQaLine) -> float:
        return float(read_letter(line.prediction) in line.references)

    def score(self, lines: Sequence[ScienceQaLine]) -> Result:
        result = super().score(lines)
        seen = [value for line, value in zip(lines, result.per_line, strict=True) if line.has_image]
        return Result(result.scores | ({"image_accuracy": mean(seen)} if seen else {}), result.per_line)


class _Problem(Record):
    question: str
    choices: list[str]
    answer: int
    hint: str
    image: str | None
    split: str
    subject: str


class _Problems(RootModel[dict[str, _Problem]]):
    pass


class _Splits(Record):
    test: list[str]


def _question_text(hint: str, question: str, options: Mapping[str, str]) -> str:
    context = f"Context: {hint}\n" if hint.strip() else ""
    return f"{context}{question}\n{lettered_lines(options)}"


def _of_hub(row: TableRow) -> Sequence[Item]:
    options, kind = lettered(row["choices"]), "image" if row.media else "text"
    question = _question_text(row.record.get("hint", ""), row["question"], options)
    fields = {"has_image": bool(row.media), "subject": row["subject"], "options": options}
    return [row.item(str(row.number), question, [list(options)[row["answer"]]], kind, **fields)]


@BENCHMARKS.register("scienceqa")
class ScienceQa(Benchmark):
    """All questions, those without an image too; `image_accuracy` is the subset that LLaVA reports."""

    folder = "scienceqa"
    metric = "scienceqa"
    suffix = LETTER_ANSWER
    card = Card(
        title="ScienceQA test",
        questions="4,241, of which 2,017 have an image",
        files=("problems.json", "pid_splits.json", "images/test/{id}/image.png"),
        source="https://github.com/lupantech/ScienceQA",
        size="0.6 GB",
        licence="CC BY-NC-SA 4.0",
        protocol="hint, question, lettered options, LLaVA's multiple-choice suffix; the letter as LLaVA reads it",
    )
    hub = (
        hub_layout(
            "lmms-lab/ScienceQA", "ScienceQA-FULL/test-*.parquet", "question choices answer hint subject", _of_hub
        ),
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, "problems.json")
        problems = self.read(path, _Problems).root
        return [
            self._item(data, path, name, problems.get(name))
            for name in self.read(self.find(data, "pid_splits.json"), _Splits).test
        ]

    def _item(self, data: Path, path: Path, name: str, problem: _Problem | None) -> Item:
        if problem is None:
            raise UserError(f"{path} has no problem {name}, which pid_splits.json lists; get both files again")
        options = lettered(problem.choices)
        image = data / self.folder / "images" / problem.split / name / problem.image if problem.image else None
        return Item(
            name,
            shown(image),
            _question_text(problem.hint, problem.question, options),
            (ascii_uppercase[problem.answer],),
            "image" if image else "text",
            group=name,
            fields={"has_image": image is not None, "subject": problem.subject, "options": options},
        )
