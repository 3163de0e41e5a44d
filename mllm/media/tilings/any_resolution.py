"""`anyres`: LLaVA-NeXT (LLaVA-1.6; Liu et al. 2024), an overview and tiles of the image scaled into a pinpoint.

The overview is the whole image stretched to a square. Then the image is scaled, as it is, into the pinpoint that shows most
of it, centred on black, and cut into tiles in reading order. Their features side by side are a map; its rows and columns
that show padding alone are left out, and a learned newline follows each row.

Two rules are in use, which differ in an axis order and a rounding. `original`, of the LLaVA-NeXT code: a pinpoint is (width,
height), and what is kept of the map is rounded down. `hf`, of transformers: (height, width), rounded to seven digits and
then down. On a tie of several pinpoints the first of the list counts, so that with LLaVA-1.6's list every image of at most
336 × 336 pixels has a transposed grid under the other rule.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

from mllm.errors import UserError
from mllm.media.tilings.registry import TILINGS, Rule, Tiling
from mllm.media.visual import Arrangement, Crop, ImageGeometry, Size, Visual


@TILINGS.register("anyres")
@dataclass(frozen=True)
class AnyResolution(Tiling):
    """An overview, then tiles, with a newline behind each row of their map."""

    has_newline = True

    def __post_init__(self) -> None:
        """Raises UserError for pinpoints that can't be cut into tiles, or none, and for tokens that have no place in a map: a
        class token, and a resampler's."""
        side, pinpoints = self.geometry.image_size_px, self.numbers.pinpoints
        if self.geometry.keep_class_token:
            raise UserError("a map of tiles has no place for a class token; set model.vision_encoder.class_token: drop")
        if self.geometry.features_per_patch > 1:
            raise UserError(
                "a map of tiles has no place for interleaved features of two encoders; set "
                "model.vision_encoder.second.fusion: width"
            )
        if not self.geometry.has_places:
            raise UserError(
                "a map of tiles needs image tokens of known places, and a resampler's have none; set model.image.tiling to "
                "grid or square, or take another model.projector.kind"
            )
        wrong = next((p for p in pinpoints if min(p) < side or p[0] % side or p[1] % side), None)
        if wrong is not None:
            raise UserError(
                f"model.image.pinpoints: {list(wrong)} is no multiple of the encoder's {side} px on both sides"
            )
        if not pinpoints:
            raise UserError("model.image.pinpoints is empty; name pairs of pixels such as [672, 672]")
        most = self.numbers.max_tiles
        if most is not None and not self._sizes(most):
            raise UserError(f"model.image.max_tiles is {most}, and every one of model.image.pinpoints has more tiles")

    def visual(self, size: Size, sharers: int = 1) -> Visual:
        """Of the pinpoints of too many tiles for the image's share none is taken; where none is left, it gets one tile."""
        most = self.numbers.max_tiles
        sizes = self._sizes(None if most is None else max(1, most // sharers))
        return self._tiled(size, best_size(size, sizes)) if sizes else self.square()

    def square(self) -> Visual:
        plain = super().square()
        return replace(plain, token_count=plain.token_count + 1, arrangement=Arrangement(newline="end"))

    def longest(self) -> Visual:
        """Of images of each pinpoint's own size, which fill their map."""
        return max((self._tiled(size, size) for size in self.canvases), key=lambda visual: visual.token_count)

    @property
    def canvases(self) -> tuple[Size, ...]:
        """The pinpoints that an image may be scaled into, as (height, width), those of at most `max_tiles` tiles."""
        return self._sizes(self.numbers.max_tiles)

    def _sizes(self, most: int | None) -> tuple[Size, ...]:
        """The pinpoints as (height, width), those of at most `most` tiles."""
        side = self.geometry.image_size_px
        sizes = [p if self.numbers.rule == "hf" else (p[1], p[0]) for p in self.numbers.pinpoints]
        return tuple(s for s in sizes if most is None or s[0] // side * (s[1] // side) <= most)

    def _tiled(self, size: Size, canvas: Size) -> Visual:
        return _tiled(self.geometry, self.numbers.rule, size, canvas, self.map_tiles)

    @property
    def map_tiles(self) -> int | None:
        """A map of more features than so many tiles have is scaled down; None: never."""
        return None


def best_size(size: Size, sizes: tuple[Size, ...]) -> Size:
    """Of `sizes` the one in which most pixels of an image of `size` are shown; of those alike the smallest, and the first."""
    height, width = size
    best, most, least_wasted = sizes[0], 0, float("inf")
    for canvas in sizes:
        scale = min(canvas[1] / width, canvas[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        wasted = canvas[0] * canvas[1] - shown
        if shown > most or (shown == most and wasted < least_wasted):
            best, most, least_wasted = canvas, shown, wasted
    return best


def fitted_size(size: Size, canvas: Size) -> Size:
    """The size of an image of `size` scaled into `canvas`, its shape kept and rounded up."""
    (height, width), (most_height, most_width) = size, canvas
    by_width, by_height = most_width / width, most_height / height
    if by_width < by_height:
        return min(ceil(height * by_width), most_height), most_width
    return most_height, min(ceil(width * by_height), most_width)


def kept_of_map(size: Size, map_size: Size, rule: Rule) -> tuple[tuple[int, int], tuple[int, int]]:
    """(first, past the last) of the rows and of the columns of a map that show the image and not padding alone."""
    (height, width), (rows, columns) = size, map_size
    if width / height > columns / rows:
        cut = (rows - _down(height * (columns / width), rule)) // 2
        return (cut, rows - cut), (0, columns)
    cut = (columns - _down(width * (rows / height), rule)) // 2
    return (0, rows), (cut, columns - cut)


def _down(number: float, rule: Rule) -> int:
    return int(round(number, 7)) if rule == "hf" else int(number)


@lru_cache(maxsize=4096)
def _tiled(geometry: ImageGeometry, rule: Rule, size: Size, canvas: Size, map_tiles: int | None) -> Visual:
    side = geometry.image_size_px
    scaled = fitted_size(size, canvas)
    top, left = (canvas[0] - scaled[0]) // 2, (canvas[1] - scaled[1]) // 2
    corners = [(row - top, column - left) for row in range(0, canvas[0], side) for column in range(0, canvas[1], side)]
    crops = (Crop(fit="stretch"), *(Crop(scaled, corner) for corner in corners))
    grid, arrangement = arrangement_of(geometry, rule, size, canvas, map_tiles)
    return Visual(crops, grid, arrangement.count(grid, geometry.side), arrangement)


def arrangement_of(
    geometry: ImageGeometry, rule: Rule, size: Size, canvas: Size, map_tiles: int | None
) -> tuple[tuple[int, int, int], Arrangement]:
    """The grid of tiles of a canvas, and how their features are arranged of an image of `size` that is scaled into it."""
    rows, columns = canvas[0] // geometry.image_size_px, canvas[1] // geometry.image_size_px
    kept = kept_of_map(size, (rows * geometry.side, columns * geometry.side), rule)
    smaller = None if map_tiles is None else _smaller(kept, map_tiles * geometry.side**2)
    return (1, rows, columns), Arrangement(1, rows=kept[0], columns=kept[1], scaled=smaller, newline="row")


def _smaller(kept: tuple[tuple[int, int], tuple[int, int]], features: int) -> Size | None:
    """The size of a map scaled to about so many features, None where it has hardly more (LLaVA-OneVision's threshold)."""
    rows, columns = (stop - start for start, stop in kept)
    ratio = (rows * columns / features) ** 0.5
    return (max(1, int(rows // ratio)), max(1, int(columns // ratio))) if ratio > SLACK else None


SLACK = 1.1
