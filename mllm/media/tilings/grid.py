"""`grid`: InternVL (Chen et al. 2024), the image stretched to a grid of tiles, and a thumbnail last.

The grid is the one, of those of at most `max_tiles` tiles, whose shape is nearest to the image's; of shapes alike the larger
one, unless it has more than twice the image's pixels. There are no newlines; with a pixel shuffle of 2 a tile of 448 px with
patches of 14 px becomes 256 tokens.
"""

from dataclasses import dataclass
from functools import lru_cache

from mllm.media.tilings.registry import TILINGS, Tiling
from mllm.media.visual import Crop, Size, Visual

MAX_TILES = 12  # InternVL 1.5's, where `max_tiles` is not set


@TILINGS.register("grid")
@dataclass(frozen=True)
class GridTiling(Tiling):
    """Tiles of the stretched image in reading order, and the whole image where it has more than one tile."""

    def visual(self, size: Size, sharers: int = 1) -> Visual:
        rows, columns = best_grid(size, self.geometry.image_size_px, max(1, self._most // sharers))
        return self._tiled(rows, columns)

    def longest(self) -> Visual:
        return self._tiled(1, self._most)

    @property
    def _most(self) -> int:
        return self.numbers.max_tiles or MAX_TILES

    def _tiled(self, rows: int, columns: int) -> Visual:
        side = self.geometry.image_size_px
        scaled = (rows * side, columns * side)
        corners = [(row * side, column * side) for row in range(rows) for column in range(columns)]
        thumbnail = (Crop(fit="stretch"),) if len(corners) > 1 else ()
        crops = (*(Crop(scaled, corner) for corner in corners), *thumbnail)
        return Visual(crops, (1, rows, columns), len(crops) * self.geometry.tokens_per_tile)


@lru_cache(maxsize=4096)
def best_grid(size: Size, side: int, most: int) -> Size:
    """(rows, columns) of tiles of `side` pixels, at most `most`, for an image of `size`."""
    height, width = size
    ratio, area = width / height, width * height
    best, least = (1, 1), float("inf")
    shapes = [(rows, columns) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    for rows, columns in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
        difference = abs(ratio - columns / rows)
        if difference < least or (difference == least and area > 0.5 * side**2 * rows * columns):
            best, least = (rows, columns), difference
    return best
