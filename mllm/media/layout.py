"""How many tokens an image becomes: one function, used by the data side and checked by the model.

Any-resolution tiling will enter here: `ImageLayout.tiles` is its place.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageLayout:
    """What becomes of one image: `tiles` inputs of the encoder, `token_count` image tokens in the prompt."""

    tiles: int
    token_count: int


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
    def count_depends_on_size(self) -> bool:
        """Whether images of two sizes may become different numbers of tokens, so that sizes have to be read to count."""
        return False

    def layout(self, height_px: int, width_px: int) -> ImageLayout:
        """The layout of an image of this size, without decoding a pixel."""
        if height_px < 1 or width_px < 1:
            raise ValueError(f"an image of {height_px}×{width_px} pixels has no content")
        return ImageLayout(tiles=1, token_count=(self.grid // self.shuffle) ** 2 + int(self.keep_class_token))
