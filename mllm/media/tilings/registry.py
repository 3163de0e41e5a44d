"""What a tiling is, what it may be told, and the table of names."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from mllm.media.visual import ImageGeometry, Size, Square, Visual
from mllm.registry import Registry

Rule = Literal["hf", "original"]


@dataclass(frozen=True)
class TilingRule:
    """The numbers that tilings go by; each reads those that concern it.

    pinpoints: pairs of pixels, the sizes that an image may be scaled into. rule: axis order and rounding of the pinpoints
    (`mllm.media.tilings.any_resolution`). max_tiles: most tiles of one image, overviews not counted. map_tiles: a map of more
    features than so many tiles have is scaled down.
    """

    pinpoints: tuple[tuple[int, int], ...] = ()
    rule: Rule = "hf"
    max_tiles: int | None = None
    map_tiles: int = 9


@dataclass(frozen=True)
class Tiling(ABC):
    """Decides what an image becomes, from its size alone."""

    geometry: ImageGeometry
    numbers: TilingRule

    depends_on_size: ClassVar[bool] = True
    has_newline: ClassVar[bool] = False  # whether it puts a learned row between features

    @abstractmethod
    def visual(self, size: Size, sharers: int = 1) -> Visual:
        """What an image of `size` becomes; `sharers` images share `max_tiles`."""

    def square(self) -> Visual:
        """What an image becomes that gets one tile."""
        return Square(self.geometry).visual

    def longest(self) -> Visual:
        """The visual with the most image tokens: what memory is planned for."""
        return self.square()


TILINGS: Registry[type[Tiling]] = Registry("tiling")
