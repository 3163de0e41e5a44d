"""Pointing: whether the place that an answer points at lies in what was asked for (the pointing game; Zhang et al. 2018)."""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from mllm.conversation.boxes.scanning import NUMBER
from mllm.evaluation.metric import METRICS, Metric, Result, mean
from mllm.evaluation.metrics.box_text import read_box
from mllm.evaluation.metrics.iou import Convention, IouLine, check_size, comparable, is_outside

_POINT = re.compile(rf"[\[(]\s*({NUMBER})\s*,\s*({NUMBER})\s*[\])]")
Point = tuple[float, float]


class PointingLine(IouLine):
    """References are boxes.

    points: what was read of the answer in its model's own box format, in shares of the image (0-1); the prediction isn't read
    where they are given.
    """

    points: list[Annotated[list[float], Field(min_length=2, max_length=2)]] | None = None


@METRICS.register("pointing")
class Pointing(Metric):
    """`score` is the share of answers whose first point lies in a reference box, its edges included.

    An answer that is a box points at its middle. One that points outside of the image is a miss.

    convention, reference_convention: as of `iou`. Where the two differ, lines need `width` and `height` (pixels).
    """

    line = PointingLine

    convention: Convention = "pixels"
    reference_convention: Convention = "pixels"

    def score(self, lines: Sequence[PointingLine]) -> Result:
        values, unread = [], 0
        for number, line in enumerate(lines, 1):
            convention = self.convention if line.points is None else "0-1"
            check_size(line, number, convention, self.reference_convention)
            point = _point(line)
            unread += point is None
            values.append(float(point is not None and self._is_hit(point, convention, line)))
        notes = (
            [f"{unread} of {len(lines)} answers name no point that can be read, and count as misses"] if unread else []
        )
        return Result({"score": mean(values), "without_point": unread}, values, tuple(notes))

    def _is_hit(self, point: Point, convention: Convention, line: PointingLine) -> bool:
        corners = (*point, *point)
        if is_outside(corners, convention, line):
            return False
        is_same = convention == self.reference_convention
        x, y, _, _ = comparable(corners, convention, is_same, line)
        boxes = (comparable(own, self.reference_convention, is_same, line) for own in line.references)
        return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


def _point(line: PointingLine) -> Point | None:
    """What an answer points at, in its own units; None where it names no place."""
    if line.points is not None:
        return (line.points[0][0], line.points[0][1]) if line.points else None
    box = read_box(line.prediction) if isinstance(line.prediction, str) else line.prediction
    if box is not None:
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    found = _POINT.search(str(line.prediction))
    return None if found is None else (float(found[1]), float(found[2]))
