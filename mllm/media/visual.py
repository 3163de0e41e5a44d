"""What images and videos become: which tiles the encoder sees of them, and how many image tokens the language model reads.

One plan, made from sizes alone before a pixel is decoded, is followed by all: the processor renders as many image tokens
as it says, the preparer cuts its tiles, collation holds the counts against each other, and the projector arranges by it
what the encoder made. Numbers only, integers and Python floats: no pixels and no tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, Protocol

Size = tuple[int, int]  # (height, width) in pixels, as an image is displayed
Fit = Literal["pad", "crop", "stretch"]
Pooling = Literal["none", "average", "bilinear"]
Newline = Literal["none", "row", "frame", "end"]
TimePrompt = Literal["none", "llava_video"]


@dataclass(frozen=True)
class Clip:
    """What is known of a video before a frame of it is decoded.

    height, width: in pixels, as it is displayed. times_s: when each frame is shown, in seconds from the first, ascending.
    """

    height: int
    width: int
    times_s: tuple[float, ...]

    @property
    def frame_count(self) -> int:
        return len(self.times_s)

    @property
    def seconds(self) -> float:
        """How long it lasts: to the last frame, and that frame as long as the others on average."""
        if self.frame_count < 2:
            return 0.0
        return self.times_s[-1] * self.frame_count / (self.frame_count - 1)


Media = Size | Clip


@dataclass(frozen=True)
class Crop:
    """What of an image or of a frame one tile shows.

    scaled: the size that the image is scaled to before the tile is cut out; None for a tile of the whole image, which is
    made square by `fit` (None: the model's own). corner: (row, column) of the tile's first pixel in the scaled image; what
    lies outside the image is black. frame: which frame of a video it is cut from, None for an image.
    """

    scaled: Size | None = None
    corner: tuple[int, int] = (0, 0)
    frame: int | None = None
    fit: Fit | None = None


WHOLE = Crop()


@dataclass(frozen=True)
class Arrangement:
    """How the features of a visual's crops lie in the line of its image tokens, where they don't simply follow each other.

    overviews: its first crops, which stand before all else as they are. What follows is a map for each frame: the features
    of `grid` rows and columns of crops, side by side. pooling, stride: a map is pooled by squares of `stride` (average: what
    doesn't fill a square is left out; bilinear: scaled to the size rounded up), before the projector's layers where
    `pools_before` says so. rows, columns: (first, past the last) of the map that are kept; None: all. scaled: the size that
    what is kept is scaled to, bilinear. newline: where a learned row is put in: behind each row of a map, behind each map,
    or at the end of all.
    """

    overviews: int = 0
    pooling: Pooling = "none"
    stride: int = 1
    pools_before: bool = False
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    scaled: Size | None = None
    newline: Newline = "none"

    def map_size(self, grid: tuple[int, int, int], side: int) -> Size:
        """(rows, columns) of one frame's map without newlines; side: features along one side of a tile."""
        height, width = self.pooled_size((grid[1] * side, grid[2] * side))
        rows, columns = self.rows or (0, height), self.columns or (0, width)
        return self.scaled or (rows[1] - rows[0], columns[1] - columns[0])

    def pooled_size(self, size: Size) -> Size:
        if self.pooling == "none":
            return size
        if self.pooling == "average":
            return size[0] // self.stride, size[1] // self.stride
        return ceil(size[0] / self.stride), ceil(size[1] / self.stride)

    def count(self, grid: tuple[int, int, int], side: int) -> int:
        """Image tokens of a visual of `grid` (frames, rows, columns) of tiles with side × side features."""
        frames = grid[0]
        rows, columns = self.map_size(grid, side)
        newlines = {"none": 0, "row": frames * rows, "frame": frames, "end": 1}[self.newline]
        return self.overviews * side**2 + frames * rows * columns + newlines


@dataclass(frozen=True)
class Visual:
    """What one image or video becomes in its conversation.

    crops: its tiles, in the encoder's order. grid: (frames, rows, columns) of those tiles that together are one picture;
    a tile beyond them is an overview. token_count: image tokens in the prompt. arrangement: how features become them; None
    where those of each tile follow those of the one before. words: a line of the prompt behind the image tokens, such as when
    a video's frames are shown; empty for none.

    Equal visuals of equal files have equal features, so that this and the file are a cache's key.
    """

    crops: tuple[Crop, ...]
    grid: tuple[int, int, int]
    token_count: int
    arrangement: Arrangement | None = None
    words: str = ""

    @property
    def tile_count(self) -> int:
        return len(self.crops)

    @property
    def frames(self) -> tuple[int, ...] | None:
        """Which frames of a video are shown, in order; None for an image."""
        frames = tuple(crop.frame for crop in self.crops if crop.frame is not None)
        return frames or None


class VisualPlanner(Protocol):
    """Decides what the images and videos of a conversation become. Its `repr` says all that it decides by."""

    @property
    def depends_on_size(self) -> bool:
        """Whether images of two sizes may become unlike visuals, so that sizes have to be read before text is rendered."""
        ...

    def plan(self, media: Sequence[Media], turns: Sequence[int] = ()) -> tuple[Visual, ...]:
        """One visual for each of ALL images and videos of a conversation, in their order: they may share a budget.

        turns: the turn of each, by its number; all in one where it is empty.
        """
        ...

    def longest(self) -> Visual:
        """The visual of an image with the most image tokens."""
        ...

    def longest_clip(self) -> Visual:
        """The visual of a video of which as many frames are shown as of any."""
        ...


@dataclass(frozen=True)
class ImageGeometry:
    """The encoder's and projector's share in the count; saved with the model.

    image_size_px: side of the encoder's square input; patch_size_px: side of a patch; keep_class_token: whether the
    class token is handed on; shuffle: the projector merges shuffle × shuffle patches into one token; pooled_side: or it gives
    as many tokens along a side, whatever the patches are; has_places: whether each token is of one place in its tile;
    features_per_patch: how many features of a patch follow each other.
    """

    image_size_px: int
    patch_size_px: int
    keep_class_token: bool = False
    shuffle: int = 1
    pooled_side: int | None = None
    has_places: bool = True
    features_per_patch: int = 1

    def __post_init__(self) -> None:
        if self.grid % self.shuffle:
            raise ValueError(f"a grid of {self.grid}×{self.grid} patches can't be shuffled by {self.shuffle}")
        if self.keep_class_token and self.shuffle > 1:
            raise ValueError("the class token has no place in a pixel-shuffled grid; use class_token: drop")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size_px // self.patch_size_px

    @property
    def side(self) -> int:
        """Features along one side of a tile behind the projector."""
        return self.pooled_side or self.grid // self.shuffle

    @property
    def features_per_tile(self) -> int:
        """Features that the encoder gives for one tile."""
        return self.features_per_patch * self.grid**2 + int(self.keep_class_token)

    @property
    def tokens_per_tile(self) -> int:
        """Features that the projector gives for one tile."""
        return self.features_per_patch * self.side**2 + int(self.keep_class_token)


@dataclass(frozen=True)
class Square:
    """One tile, whatever an image's size: LLaVA-1.5's way. How it becomes square is the preparer's `fit`."""

    geometry: ImageGeometry

    @property
    def visual(self) -> Visual:
        """What every image becomes."""
        return Visual((WHOLE,), (1, 1, 1), self.geometry.tokens_per_tile)
