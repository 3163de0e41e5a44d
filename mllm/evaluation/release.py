"""Official files as they are released: where they lie, what they hold, and what benchmarks say of them alike."""

import ast
import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mllm.errors import UserError

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."

R = TypeVar("R", bound=BaseModel)


class Record(BaseModel):
    """Part of an official file: the fields that are used, the others ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def find_file(root: Path, names: Sequence[str], source: str) -> Path:
    """Find the first of `names` that `root` has. Raises UserError saying what is missing and who offers it."""
    found = next((root / name for name in names if (root / name).is_file()), None)
    if found is None:
        others = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
        raise UserError(f"{root / names[0]}{others} does not exist; get it from {source}")
    return found


def read_as(kind: type[R], path: Path, source: str) -> R:
    """Read a JSON file as `kind`. Raises UserError naming the place in the file where it isn't as released."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; get the file again from {source}") from None


def read_lines_as(kind: type[R], path: Path, source: str) -> list[R]:
    """Read a JSON object a line as `kind`. Raises UserError naming the line that isn't as released."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                found.append(kind.model_validate_json(line))
            except ValidationError as error:
                raise UserError(f"{path}:{number}: {first_problem(error)}; get it again from {source}") from None
    return found


def read_table(path: Path, columns: Sequence[str], source: str) -> list[tuple[int, dict[str, str]]]:
    """Read the numbered lines of a CSV file as rows by column. Raises UserError naming a line without one of `columns`."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = [(reader.line_num, row) for row in reader]
    for number, row in rows or [(1, {})]:
        if any(row.get(column) is None for column in columns):
            raise UserError(f"{path}:{number}: isn't as released; get it again from {source}")
    return rows


def first_problem(error: ValidationError) -> str:
    """Say the first problem of an error in a line: the place, and what is wrong there."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    text = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


def coco_image(root: Path, split: str, image_id: int) -> Path:
    """Name a COCO 2014 image in `root/{split}`, or in `coco/{split}` beside `root`, where benchmarks may share it."""
    return shared_image(root, split, f"COCO_{split}_{image_id:012d}.jpg")


def shared_image(root: Path, split: str, name: str) -> Path:
    """Name a file of `root/{split}`, or of `coco/{split}` beside `root` if it lies there alone."""
    own, shared = root / split / name, root.parent / "coco" / split / name
    return shared if shared.is_file() and not own.is_file() else own


def listed(value: Any) -> list[Any]:
    """Take a list as it is, or read the text that writes one, as some data sets hold it. Raises ValueError for what isn't."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except SyntaxError:
            raise ValueError(f"{value[:80]!r} writes no list") from None
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:80]!r} is no list")
    return value


def options_in(question: str) -> dict[str, str]:
    """Read the options off a question: `A. one`, `A: one` or `(A) one`, from A on, each to the next or its line's end.

    Returns {} where there aren't two of a form.
    """
    for form in (r"\({}\)\s*", r"(?<![A-Za-z]){}[.:]\s+"):
        marks: list[tuple[int, int]] = []
        for letter in ascii_uppercase:
            mark = re.compile(form.format(letter)).search(question, marks[-1][1] if marks else 0)
            if mark is None:
                break
            marks.append(mark.span())
        if len(marks) > 1:
            stops = [start for start, _ in marks[1:]] + [len(question)]
            texts = [question[begin:stop].split("\n")[0] for (_, begin), stop in zip(marks, stops, strict=True)]
            return lettered([text.strip().removesuffix(",") for text in texts])
    return {}


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """Name options by letters, A first."""
    return dict(zip(ascii_uppercase, texts, strict=False))


def lettered_lines(options: Mapping[str, str]) -> str:
    """Write one line an option: `A. a leaf`."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())
