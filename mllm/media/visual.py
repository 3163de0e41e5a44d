"""What images become: which tiles the encoder sees of them, and how many image tokens the language model reads.

One plan, made from sizes alone before a pixel is decoded, is followed by all: the processor renders as many image tokens
as it says, the preparer cuts its tiles, collation holds the counts against each other, and the projector arranges by it
what the encoder made. Numbers only: no pixels and no tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Size = tuple[int, int]  # (height, width) in pixels, as an image is displayed


@dataclass(frozen=True)
class Clip:
    """What is known of a video before a frame of it is decoded.

    height, width: of its frames in pixels, as displayed. times_s: when each frame is shown, in order, from 0.
    """

    height: int
    width: int
    times_s: tuple[float, ...]

    @property
    def frame_count(self) -> int:
        return len(self.times_s)

    @property
    def seconds(self) -> float:
        """How long it is shown: the last frame as long as the others are on average; 0 for a single frame."""
        last, steps = self.times_s[-1], self.frame_count - 1
        return last * self.frame_count / steps if steps else 0.0


@dataclass(frozen=True)
class Crop:
    """What of an image one tile shows.

    scaled: the size that the image is scaled to before the tile is cut out; None for a tile of the whole image, which the
    preparer makes square by the model's `fit`. corner: (row, column) of the tile's first pixel in the scaled image; what
    lies outside the image is padding.
    """

    scaled: Size | None = None
    corner: tuple[int, int] = (0, 0)


WHOLE = Crop()


@dataclass(frozen=True)
class Visual:
    """What one image becomes in its conversation.

    crops: its tiles, in the encoder's order. grid: (frames, rows, columns) of those tiles that together are one picture;
    a tile beyond them is an overview. token_count: image tokens in the prompt.

    Equal visuals of equal files have equal features, so that this and the file are a cache's key. A planner whose
    projector has to know more returns a subclass.
    """

    crops: tuple[Crop, ...]
    grid: tuple[int, int, int]
    token_count: int

    @property
    def tile_count(self) -> int:
        return len(self.crops)


class VisualPlanner(Protocol):
    """Decides what the images of a conversation become. Its `repr` says all that it decides by."""

    @property
    def depends_on_size(self) -> bool:
        """Whether images of two sizes may become unlike visuals, so that sizes have to be read before text is rendered."""
        ...

    def plan(self, sizes: Sequence[Size]) -> tuple[Visual, ...]:
        """One visual for each of ALL images of a conversation, in their order: they may share a budget."""
        ...


@dataclass(frozen=True)
class ImageGeometry:
    """The encoder's and projector's share in the count; saved with the model.

    image_size_px: side of the encoder's square input; patch_size_px: side of a patch; keep_class_token: whether the
    class token is handed on; shuffle: the projector merges shuffle × shuffle patches into one token.
    """

    image_size_px: int
    patch_size_px: int
    keep_class_token: bool = False
    shuffle: int = 1

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
    def tokens_per_tile(self) -> int:
        """Features that the projector gives for one tile."""
        return (self.grid // self.shuffle) ** 2 + int(self.keep_class_token)


@dataclass(frozen=True)
class Square:
    """Each image is one tile, whatever its size: LLaVA-1.5's way. How it becomes square is the preparer's `fit`."""

    geometry: ImageGeometry

    @property
    def depends_on_size(self) -> bool:
        return False

    def plan(self, sizes: Sequence[Size]) -> tuple[Visual, ...]:
        """Raises ValueError for an image without pixels."""
        for height, width in sizes:
            if height < 1 or width < 1:
                raise ValueError(f"an image of {height}×{width} pixels has no content")
        return (self.visual,) * len(sizes)

    @property
    def visual(self) -> Visual:
        """What every image becomes."""
        return Visual((WHOLE,), (1, 1, 1), self.geometry.tokens_per_tile)
