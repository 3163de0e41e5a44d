"""ScienceQA, test split: multiple-choice questions of school science, half of them with an image (Lu et al. 2022)."""

from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase

from pydantic import RootModel

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import LETTER_ANSWER, Card, OfficialBenchmark, Record, lettered, lettered_lines


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


def question_text(hint: str, question: str, options: Mapping[str, str]) -> str:
    context = f"Context: {hint}\n" if hint.strip() else ""
    return f"{context}{question}\n{lettered_lines(options)}"


@BENCHMARKS.register("scienceqa")
class ScienceQa(OfficialBenchmark):
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
            image,
            question_text(problem.hint, problem.question, options),
            (ascii_uppercase[problem.answer],),
            "image" if image else "text",
            group=name,
            fields={"has_image": image is not None, "subject": problem.subject, "options": options},
        )
