"""Intersection over union of boxes: accuracy at 0.5, as for RefCOCO, RefCOCO+ and RefCOCOg (Yu et al. 2016)."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat

from mllm.errors import UserError
from mllm.evaluation.metric import METRICS, Line, Metric, Result, mean

Convention = Literal["pixels", "0-1", "0-1000"]
Box = tuple[float, float, float, float]
Corners = Annotated[list[float], Field(min_length=4, max_length=4)]
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")


def _as_boxes(value: object) -> object:
    return [value] if isinstance(value, list) and value and not isinstance(value[0], list) else value


class IouLine(Line):
    """Boxes are corners x1, y1, x2, y2; a prediction may be text, whose first four numbers are taken."""

    prediction: Corners | str  # type: ignore[assignment]
    references: Annotated[list[Corners], BeforeValidator(_as_boxes), Field(min_length=1)]  # type: ignore[assignment]
    width: PositiveFloat | None = None
    height: PositiveFloat | None = None


def read_box(text: str) -> list[float] | None:
    """The first four numbers of a text, None where there are fewer."""
    numbers = [float(number) for number in _NUMBER.findall(text)[:4]]
    return numbers if len(numbers) == 4 else None


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
class Iou(Metric):
    """`score` is the share of boxes with IoU ≥ the threshold. Coordinates are what they are declared to be.

    convention, reference_convention: pixels of the image, 0–1 or 0–1000 of its width and height. Where the two differ,
        lines need `width` and `height` (pixels); pixels are clipped to the image where lines have them.
    """

    line = IouLine

    convention: Convention = "pixels"
    reference_convention: Convention = "pixels"
    threshold: float = Field(0.5, gt=0, le=1)

    def score(self, lines: Sequence[IouLine]) -> Result:
        values, unread = [], 0
        for number, line in enumerate(lines, 1):
            if self.convention != self.reference_convention and (line.width is None or line.height is None):
                raise UserError(
                    f"answer {line.id or number}: width, height: fields required, since predictions are in "
                    f"{self.convention} and references in {self.reference_convention}"
                )
            corners = read_box(line.prediction) if isinstance(line.prediction, str) else line.prediction
            unread += corners is None
            values.append(0.0 if corners is None else self._best(corners, line))
        scores = {"score": mean([float(v >= self.threshold) for v in values]), "mean_iou": mean(values)}
        return Result(scores | {"without_box": unread}, values)

    def _best(self, corners: Sequence[float], line: IouLine) -> float:
        box = self._in_common_units(corners, self.convention, line)
        return max(box_iou(box, self._in_common_units(r, self.reference_convention, line)) for r in line.references)

    def _in_common_units(self, corners: Sequence[float], convention: Convention, line: IouLine) -> Box:
        """Pixels where the two conventions differ, else the units that both are in."""
        width, height = line.width, line.height
        if self.convention == self.reference_convention:
            top = {"pixels": float("inf"), "0-1": 1.0, "0-1000": 1000.0}[convention]
            is_pixels = convention == "pixels"
            return _ordered(corners, (is_pixels and width) or top, (is_pixels and height) or top)
        assert width is not None and height is not None
        unit = {"pixels": 1.0, "0-1": 1.0, "0-1000": 1000.0}[convention]
        scale_x, scale_y = (1.0, 1.0) if convention == "pixels" else (width / unit, height / unit)
        x1, y1, x2, y2 = corners
        return _ordered((x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y), width, height)
