"""Intersection over union of boxes: accuracy at 0.5, as for RefCOCO, RefCOCO+ and RefCOCOg (Yu et al. 2016)."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat

from mllm.errors import UserError
from mllm.evaluation.metric import METRICS, Line, Metric, Result, mean
from mllm.evaluation.metrics.box_text import box_of, read_bins, read_box

Convention = Literal["pixels", "0-1", "0-1000", "0-1024"]
# What the whole width or height is.
UNITS = {"0-1": 1.0, "0-1000": 1000.0, "0-1024": 1024.0}
Box = tuple[float, float, float, float]
Corners = Annotated[list[float], Field(min_length=4, max_length=4)]


def _as_text(value: object) -> object:
    """What a model wrote as JSON and somebody parsed, as the text that it was; four numbers stay."""
    is_structure = isinstance(value, Mapping) or (
        isinstance(value, list) and any(isinstance(v, list | Mapping) for v in value)
    )
    return json.dumps(value) if is_structure else value


def _as_boxes(value: object) -> object:
    """References as lists of four numbers, each read from its text where it is one."""
    if isinstance(value, str | Mapping) or (isinstance(value, list) and value and isinstance(value[0], int | float)):
        value = [value]
    if not isinstance(value, list):
        return value
    return [_read(own) if isinstance(own, str | Mapping) else own for own in value]


def _read(reference: Any) -> list[float]:
    box = box_of(reference)
    if box is None:
        raise ValueError(f"{reference!r} names no box; expected x1, y1, x2, y2")
    return box


class IouLine(Line):
    """Boxes are corners x1, y1, x2, y2; `box_text` says which texts name one.

    boxes: what was read of the answer in its model's own box format, in shares of the image (0-1); the prediction isn't read
    where they are given, and may be anything.
    """

    prediction: Annotated[Corners | str, BeforeValidator(_as_text)]  # type: ignore[assignment]
    references: Annotated[list[Corners], BeforeValidator(_as_boxes), Field(min_length=1)]  # type: ignore[assignment]
    width: PositiveFloat | None = None
    height: PositiveFloat | None = None
    boxes: list[Corners] | None = None


def box_iou(first: Box, second: Box) -> float:
    """Corners in, no +1: a box without area has IoU 0 with everything."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(first) + _area(second) - width * height)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _ordered(corners: Sequence[float], limit_x: float, limit_y: float) -> Box:
    """Inverted corners swapped, then clipped to the image."""
    x1, x2 = sorted(min(max(x, 0.0), limit_x) for x in (corners[0], corners[2]))
    y1, y2 = sorted(min(max(y, 0.0), limit_y) for y in (corners[1], corners[3]))
    return x1, y1, x2, y2


@METRICS.register("iou")
class IouScore(Metric):
    """`score` is the share of boxes with IoU ≥ the threshold. Coordinates are what they are declared to be.

    convention, reference_convention: pixels of the image, or what the whole width and height are. In 0-1024 the tokens
        `<loc0123>` are read, too, which are bins by definition. Where the two differ, lines need `width` and `height`
        (pixels); pixels are clipped to the image where lines have them.
    several: of several references the best counts (`any`), or the box around all of them (`merged`).
    """

    line = IouLine

    convention: Convention = "pixels"
    reference_convention: Convention = "pixels"
    threshold: float = Field(0.5, gt=0, le=1)
    several: Literal["any", "merged"] = "any"

    def score(self, lines: Sequence[IouLine]) -> Result:
        values, unread, outside = [], 0, 0
        for number, line in enumerate(lines, 1):
            convention = self.convention if line.boxes is None else "0-1"
            check_size(line, number, convention, self.reference_convention)
            corners = self._corners(line)
            unread += corners is None
            outside += corners is not None and is_outside(corners, convention, line)
            values.append(0.0 if corners is None else self._best(corners, convention, line))
        scores = {"score": mean([float(v >= self.threshold) for v in values]), "mean_iou": mean(values)}
        counts = {"without_box": unread, "outside_frame": outside}
        return Result(scores | counts, values, tuple(self._notes(len(lines), unread, outside)))

    def _corners(self, line: IouLine) -> list[float] | None:
        if line.boxes is not None:
            return next(iter(line.boxes), None)
        if not isinstance(line.prediction, str):
            return line.prediction
        bins = read_bins(line.prediction) if self.convention == "0-1024" else None
        return bins or read_box(line.prediction)

    def _notes(self, count: int, unread: int, outside: int) -> Sequence[str]:
        notes = [f"{unread} of {count} answers name no box that can be read, and count as misses"] if unread else []
        if outside > count / 2:
            notes.append(
                f"{outside} of {count} boxes reach beyond the image as the convention {self.convention} has it; are they in "
                "these units?"
            )
        return notes

    def _best(self, corners: Sequence[float], convention: Convention, line: IouLine) -> float:
        """Pixels are compared where the two conventions differ, else the units that both are in."""
        is_same = convention == self.reference_convention
        box = comparable(corners, convention, is_same, line)
        references = [comparable(r, self.reference_convention, is_same, line) for r in line.references]
        return max(box_iou(box, r) for r in ([around(references)] if self.several == "merged" else references))


def check_size(line: IouLine, number: int, convention: Convention, reference_convention: Convention) -> None:
    """Raise UserError, naming the line, where conventions differ and the image's size isn't there to compare them."""
    if convention != reference_convention and (line.width is None or line.height is None):
        raise UserError(
            f"answer {line.id or number}: width, height: fields required, since predictions are in "
            f"{convention} and references in {reference_convention}"
        )


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of them."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def is_outside(corners: Sequence[float], convention: Convention, line: IouLine) -> bool:
    """Whether a corner lies outside what is declared to be the image."""
    unit = UNITS.get(convention)
    right, bottom = (unit, unit) if unit is not None else (line.width, line.height)
    limits = (right, bottom, right, bottom)
    return any(value < 0 or (limit is not None and value > limit) for value, limit in zip(corners, limits, strict=True))


def comparable(corners: Sequence[float], convention: Convention, is_same: bool, line: IouLine) -> Box:
    """In the units of `convention` where predictions and references share them, else in pixels; clipped to the image."""
    width, height = line.width, line.height
    if is_same:
        top = UNITS.get(convention, float("inf"))
        is_pixels = convention == "pixels"
        return _ordered(corners, (is_pixels and width) or top, (is_pixels and height) or top)
    assert width is not None and height is not None
    unit = UNITS.get(convention)
    scale_x, scale_y = (1.0, 1.0) if unit is None else (width / unit, height / unit)
    x1, y1, x2, y2 = corners
    return _ordered((x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y), width, height)
