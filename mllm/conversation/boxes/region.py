"""A place in an image: a box, a point or a quadrilateral, in double precision and one unit for all."""

from collections.abc import Callable
from math import isfinite
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

Kind = Literal["box", "point", "quad"]
Point = tuple[float, float]
Corners = tuple[float, float, float, float]


class Region(BaseModel):
    """A place, and what is there. One of its three shapes is given.

    box: left, top, right and bottom. point: x and y. quad: x and y of four corners, one after the other around it. x goes
    from 0 at the left edge of the image as it is displayed to 1 at the right one, y from the top to the bottom.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = ""
    box: Corners | None = None
    point: Point | None = None
    quad: tuple[float, float, float, float, float, float, float, float] | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> "Region":
        if sum(shape is not None for shape in (self.box, self.point, self.quad)) != 1:
            raise ValueError("a place is one of box, point and quad")
        return self

    @property
    def kind(self) -> Kind:
        return "box" if self.box is not None else "point" if self.point is not None else "quad"

    @property
    def numbers(self) -> tuple[float, ...]:
        """x and y of its corners in turn."""
        return self.box or self.point or self.quad or ()

    @property
    def points(self) -> list[Point]:
        """(x, y) of its corners."""
        return list(zip(self.numbers[::2], self.numbers[1::2], strict=True))

    @property
    def outline(self) -> tuple[Point, ...]:
        """(x, y) of all corners around it: four, or the point itself."""
        if self.box is None:
            return tuple(self.points)
        left, top, right, bottom = self.box
        return (left, top), (right, top), (right, bottom), (left, bottom)

    @property
    def bounds(self) -> Corners:
        """Left, top, right and bottom of all of it."""
        xs, ys = self.numbers[::2], self.numbers[1::2]
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def is_within(self) -> bool:
        """Whether all of it lies in the image."""
        return all(0 <= number <= 1 for number in self.numbers)

    def moved(self, move: Callable[[float, float], Point]) -> "Region":
        """The same place with each corner (x, y) where `move` puts it."""
        numbers = [number for x, y in self.points for number in move(x, y)]
        return region_of(self.kind, numbers, self.label)

    def clipped(self) -> "Region":
        """What of it lies in the image: a corner outside is moved to the nearest edge."""
        return self if self.is_within else self.moved(lambda x, y: (min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)))

    def fault(self) -> str | None:
        """What keeps it from being a place, in words; None for one that is."""
        if not all(isfinite(number) for number in self.numbers):
            return f"{self.kind} {list(self.numbers)} has a coordinate that is no number"
        if self.box is not None and (self.box[0] > self.box[2] or self.box[1] > self.box[3]):
            return f"box {list(self.box)} has its corners the other way round; give left, top, right, bottom"
        return None


def region_of(kind: Kind, numbers: list[float], label: str = "") -> Region:
    """A place of a kind by its numbers, x and y in turn."""
    return Region.model_validate({"label": label, kind: tuple(numbers)})


def box_region(numbers: list[float], label: str = "") -> Region:
    """The box between two opposite corners x1, y1, x2, y2, whichever of them comes first."""
    (x1, x2), (y1, y2) = sorted(numbers[::2]), sorted(numbers[1::2])
    return Region(label=label, box=(x1, y1, x2, y2))
