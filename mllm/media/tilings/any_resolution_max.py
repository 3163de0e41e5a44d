"""`anyres_max`: LLaVA-OneVision (Li et al. 2024), as `anyres` with a limit on the features of the map.

A map of more than about `map_tiles` tiles' features (its side 1.1 times as long or more) is scaled down, bilinear, so that an
image in many tiles costs no more tokens than one in fewer.
"""

from dataclasses import dataclass

from mllm.media.tilings.any_resolution import AnyResolution, arrangement_of, best_size
from mllm.media.tilings.registry import TILINGS
from mllm.media.visual import Size, Visual


@TILINGS.register("anyres_max")
@dataclass(frozen=True)
class AnyResolutionMax(AnyResolution):
    """An overview, then tiles, whose map is scaled down where it is large."""

    @property
    def map_tiles(self) -> int | None:
        return self.numbers.map_tiles

    def longest(self) -> Visual:
        """The most tokens have maps just below the threshold, which images of odd shapes make: those of images that fill a
        pinpoint on one side are tried, to half a feature."""
        sizes = self.canvases
        tried = [(self._count(shape, canvas), shape, canvas) for canvas in sizes for shape in self._filling(canvas)]
        ordered = sorted(tried, key=lambda entry: -entry[0])
        shape, canvas = next((s, c) for _, s, c in ordered if best_size(s, sizes) == c)
        return self._tiled(shape, canvas)

    def _count(self, size: Size, canvas: Size) -> int:
        grid, arrangement = arrangement_of(self.geometry, self.numbers.rule, size, canvas, self.map_tiles)
        return arrangement.count(grid, self.geometry.side)

    def _filling(self, canvas: Size) -> list[Size]:
        step = max(1, self.geometry.image_size_px // (2 * self.geometry.side))
        height, width = canvas
        narrower = [(height, width - cut) for cut in range(0, width, step)]
        return [*narrower, *((height - cut, width) for cut in range(step, height, step))]
