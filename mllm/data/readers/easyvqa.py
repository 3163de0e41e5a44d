"""The easy-VQA data set: questions about one coloured shape, as its pip package or a folder of the same layout holds it.

Layout: `{root}/{train,test}/questions.json` is a list of `[question, answer, image number]`, the images are
`{root}/{train,test}/images/{number}.png` and `{root}/answers.txt` lists the answers.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mllm.errors import UserError

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")

QuestionType = Literal["shape", "color", "yes_no"]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class EasyVqaQuestion:
    """One question; `id` is unique over both splits, `type` follows from the answer."""

    id: str
    image_path: Path
    question: str
    answer: str
    type: QuestionType


def installed_root() -> Path:
    """The data folder of the installed package, found without importing it. Raises UserError when there is none."""
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "easy-VQA is not installed: run `pip install --no-deps easy-vqa`, or give the path of its data folder"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def read_easyvqa(root: Path | None, split: Split) -> list[EasyVqaQuestion]:
    """The questions of one split in file order; `root` None means the installed package.

    Raises UserError when the folder, a line's form, an answer or an image is not as the layout says.
    """
    root = installed_root() if root is None else Path(root)
    path = root / split / "questions.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; give easy-VQA's data folder (it holds train/ and test/)")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; reinstall easy-vqa") from None
    images = {image.name for image in (root / split / "images").glob("*.png")}
    questions = []
    for index, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == 3 and all(isinstance(text, str) for text in row[:2])):
            raise UserError(f"{path}: entry {index} is {row!r}; expected [question, answer, image number]")
        question, answer, number = row
        if f"{number}.png" not in images:
            raise UserError(f"{path}: entry {index} asks about {number}.png, which is not in {root / split / 'images'}")
        image_path = root / split / "images" / f"{number}.png"
        kind = _question_type(answer, path, index)
        questions.append(EasyVqaQuestion(f"{split}-{index}", image_path, question, answer, kind))
    return questions


def _question_type(answer: str, path: Path, index: int) -> QuestionType:
    if answer in SHAPES:
        return "shape"
    if answer in COLORS:
        return "color"
    if answer in ("yes", "no"):
        return "yes_no"
    raise UserError(f"{path}: entry {index} has the answer {answer!r}; known are {', '.join(SHAPES + COLORS)}, yes, no")


def is_negated(question: str) -> bool:
    """Whether a yes/no question asks for an absence, as in "is there not a circle?"."""
    return bool({"not", "no"} & set(question.split()))


def describe_shape(questions: list[EasyVqaQuestion]) -> tuple[str | None, str | None]:
    """(shape, color) that the questions of *one* image reveal; None where they leave it open."""
    possible: dict[str, set[str]] = {"shape": set(SHAPES), "color": set(COLORS)}
    for question in questions:
        words = question.question.rstrip("?").split()
        for values in possible.values():
            named = values & set(words)
            if question.answer in values:
                values.intersection_update({question.answer})
            elif named and question.type != "yes_no":
                values.intersection_update(named)
            elif named:
                is_present = (question.answer == "yes") != is_negated(question.question)
                values.intersection_update(named) if is_present else values.difference_update(named)
    shape, color = (next(iter(values)) if len(values) == 1 else None for values in possible.values())
    return shape, color
