"""Pictures with the captions that they were made by, as files say it, and the questions that are asked about each caption."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm.data.readers.errors import raise_error
from mllm.data.readers.fields import found
from mllm.data.readers.json_lines import read_json
from mllm.errors import UserError

PICTURES = "pictures.jsonl"


@dataclass(frozen=True)
class Drawn:
    """An image file and the caption that it was made by, or that a real image has.

    made: what else its line says, such as seed and guidance.
    """

    image: Path
    caption: str
    made: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What is asked about a picture, and the answer that is right. type: what answers are counted by."""

    question: str
    answer: str
    type: str = "all"


Questions = Mapping[str, Sequence[Question]]
"""By caption."""


def read_pictures(path: Path | str, image_root: Path | str | None = None) -> list[Drawn]:
    """The lines `{"image", "caption", …}` of a file, or of `pictures.jsonl` in a directory.

    Images lie at image_root, or where the file is. Raises UserError with the line, and for a picture that isn't there.
    """
    file = Path(path) / PICTURES if Path(path).is_dir() else Path(path)
    if not file.is_file():
        kind = f"holds no {PICTURES}" if Path(path).is_dir() else "does not exist"
        raise UserError(
            f"{path} {kind}; give pictures as `mllm generate sample` leaves them, or a file of their captions"
        )
    root = Path(image_root) if image_root is not None else file.parent
    pictures = []
    for place, record in _records(file):
        image, caption = record.get("image"), record.get("caption")
        if not isinstance(image, str) or not isinstance(caption, str) or not caption.strip():
            raise UserError(f"{place}: expected an object with image (a path) and caption (text); {found(record)}")
        if not (root / image).is_file():
            raise UserError(f"{place}: there is no image {root / image}")
        made = {name: value for name, value in record.items() if name not in ("image", "caption")}
        pictures.append(Drawn(root / image, caption.strip(), made))
    if not pictures:
        raise UserError(f"{file} holds no pictures")
    return pictures


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, record in read_json(path, raise_error):
        if not isinstance(record, dict):
            raise UserError(f"{place}: expected an object, found {json.dumps(record)[:60]}")
        yield place, dict(record)


def read_prompts(path: Path | str) -> list[str]:
    """The prompts of a text file, one a line, or of JSON lines `{"prompt", …}`; each once. Raises UserError for none."""
    if not Path(path).is_file():
        raise UserError(f"prompt file {path} does not exist")
    if Path(path).suffix == ".jsonl":
        prompts = [_prompt(place, record) for place, record in _records(Path(path))]
    else:
        prompts = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"prompt file {path} is empty")
    return list(dict.fromkeys(prompts))


def _prompt(place: str, record: Mapping[str, Any]) -> str:
    prompt = record.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{place}: expected an object with prompt (text); {found(dict(record))}")
    return prompt.strip()


def read_questions(path: Path | str) -> dict[str, list[Question]]:
    """The lines `{"prompt", "questions": [{"question", "answer", "type"}]}` of a file. Raises UserError with the line."""
    if not Path(path).is_file():
        raise UserError(f"question file {path} does not exist")
    questions: dict[str, list[Question]] = {}
    for place, record in _records(Path(path)):
        asked = record.get("questions")
        if not isinstance(asked, list) or not asked:
            raise UserError(f"{place}: expected questions, a list of objects with question and answer")
        questions.setdefault(_prompt(place, record), []).extend(_question(place, one) for one in asked)
    if not questions:
        raise UserError(f"question file {path} is empty")
    return questions


def _question(place: str, record: Any) -> Question:
    held = record if isinstance(record, dict) else {}
    question, answer = held.get("question"), held.get("answer")
    if not (isinstance(question, str) and question.strip() and isinstance(answer, str) and answer.strip()):
        raise UserError(
            f"{place}: a question is an object with question and answer (texts); found {json.dumps(record)[:80]}"
        )
    return Question(question, answer, str(held.get("type", "all")))
