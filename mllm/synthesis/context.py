"""What is known about one image, read from a record."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.data.readers.captions import CAPTION_FIELDS, IMAGE_FIELDS
from mllm.data.readers.errors import BadRecordError, OnError
from mllm.data.readers.fields import image_paths
from mllm.data.readers.records import read_records
from mllm.data.recipe import SourceSettings
from mllm.data.samples import locate_image
from mllm.errors import BadSampleError, UserError
from mllm.media.decode import read_image_size
from mllm.synthesis.settings import InputSettings


@dataclass(frozen=True)
class Box:
    """An object: category and (x1, y1, x2, y2) in pixels of the image."""

    category: str
    corners: tuple[float, float, float, float]

    def place(self, size_px: tuple[int, int]) -> str:
        """`[x1, y1, x2, y2]` as shares of the image's (height, width), 0–1 with 3 decimals, as in LLaVA's prompts."""
        height, width = size_px
        shares = (corner / side for corner, side in zip(self.corners, (width, height) * 2, strict=True))
        return "[" + ", ".join(f"{min(max(share, 0), 1):.3f}" for share in shares) + "]"


@dataclass(frozen=True)
class Context:
    """The facts of one image. `image` is its path as samples name it, `location` where it lies, `size_px` (height, width).

    `id` is unique among inputs of one name; facts that aren't known are empty. `answers`: what a model said to `question`.
    """

    id: str
    source: str
    image: str
    location: str
    captions: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    ocr: tuple[str, ...] = ()
    alt: str = ""
    size_px: tuple[int, int] | None = None
    question: str = ""
    answers: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """All facts as lower-case text."""
        return " ".join([*self.captions, *(box.category for box in self.boxes), *self.ocr, self.alt]).lower()


def read_contexts(source: InputSettings, on_error: OnError) -> Iterator[Context]:
    """The records of an input as contexts; what can't be one goes to `on_error` and is passed over."""
    files = SourceSettings(path=source.path, image_root=source.image_root).files()
    holders = [str(Path(file)) for file in files]
    for file in files:
        for place, record in read_records(Path(file), on_error):
            try:
                yield _context(place, record, source, holders)
            except BadRecordError as error:
                on_error(error)
            except BadSampleError as error:
                on_error(BadRecordError(place, error.reason))
            except UserError as error:
                on_error(BadRecordError(place, str(error)))


def _context(place: str, record: dict[str, Any], source: InputSettings, files: Collection[str]) -> Context:
    paths = image_paths(place, record, IMAGE_FIELDS)
    if len(paths) != 1:
        raise BadRecordError(place, f"expected one image in one of the fields {', '.join(IMAGE_FIELDS)}")
    image = paths[0]
    location = locate_image(Path(source.image_root), image, files, place)
    boxes = tuple(_box(place, box) for box in _list(place, record, "boxes"))
    context = Context(
        str(image if record.get("id") is None else record["id"]),
        source.name,
        image,
        location,
        _texts(place, record, CAPTION_FIELDS),
        boxes,
        _texts(place, record, ("ocr",)),
        " ".join(_texts(place, record, ("alt", "alt_text"))),
        _size(place, record, location) if boxes else None,
        " ".join(_texts(place, record, ("question",))),
        _answers(place, record),
    )
    if context.answers and not context.question:
        raise BadRecordError(place, "has `answers` without the `question` that they are to")
    if not context.words.strip():
        raise BadRecordError(place, "has no facts: expected captions, boxes, ocr or alt")
    return context


def _list(place: str, record: dict[str, Any], name: str) -> list[Any]:
    value = record.get(name) or []
    if not isinstance(value, list):
        raise BadRecordError(place, f"expected a list in `{name}`")
    return value


def _texts(place: str, record: dict[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    value: Any = next((record[name] for name in names if record.get(name)), [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRecordError(place, f"expected text or a list of texts in `{names[0]}`")
    # A fact is a line of the prompt.
    return tuple(flat for flat in (" ".join(text.split()) for text in texts) if flat)


def _answers(place: str, record: dict[str, Any]) -> tuple[str, ...]:
    """What a model said, word for word."""
    answers = _list(place, record, "answers")
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise BadRecordError(place, "expected a list of texts in `answers`")
    return tuple(answer.strip() for answer in answers)


def _box(place: str, value: Any) -> Box:
    if isinstance(value, dict) and isinstance(value.get("category"), str):
        corners = value.get("box")
        if isinstance(corners, list) and len(corners) == 4 and all(map(_is_number, corners)):
            x1, y1, x2, y2 = corners
            if x1 < x2 and y1 < y2:
                return Box(" ".join(value["category"].split()), (x1, y1, x2, y2))
    raise BadRecordError(place, "expected boxes as {category: text, box: [x1, y1, x2, y2]} in pixels")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _size(place: str, record: dict[str, Any], location: str) -> tuple[int, int]:
    height, width = record.get("height"), record.get("width")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return read_image_size(location)
