"""Settings of the augmentations of training images."""

from pydantic import Field, model_validator

from mllm.settings import Settings

KINDS = ("jitter", "random_resized_crop", "flip", "color_jitter", "grayscale")


class AugmentSettings(Settings):
    """How training images are changed. Held-out images never are."""

    kinds: tuple[str, ...] = ("jitter",)
    """Names of the augmentations, applied in this order; [] for none. `jitter` (the default, alone) cuts a window of 85
    to 110% of the sides, on white; `random_resized_crop` is open_clip's; `flip` mirrors left and right; `color_jitter`
    and `grayscale` change colours.
    """
    scale: tuple[float, float] = (0.9, 1.0)
    """Least and largest share of the image's area that a `random_resized_crop` keeps. The default, 0.9 to 1, is
    open_clip's.
    """
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width of a `random_resized_crop` by its height. 3/4 to 4/3 by default."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Share of images that `flip` mirrors, from 0 to 1. 0.5 by default; captions that say left or right, and images of
    writing, take none.
    """
    color_jitter: tuple[float, float, float, float] = (0.32, 0.32, 0.32, 0.08)
    """How far `color_jitter` moves brightness, contrast and saturation (0.32: factors of 0.68 to 1.32) and hue (0.08 of
    the circle either way, at most 0.5). 0.32, 0.32, 0.32 and 0.08 by default.
    """
    color_jitter_probability: float = Field(default=0.8, ge=0, le=1)
    """Share of images that `color_jitter` changes, from 0 to 1. 0.8 by default."""
    grayscale_probability: float = Field(default=0.2, ge=0, le=1)
    """Share of images that `grayscale` turns grey, from 0 to 1. 0.2 by default."""

    @model_validator(mode="after")
    def _within_bounds(self) -> "AugmentSettings":
        unknown = next((kind for kind in self.kinds if kind not in KINDS), None)
        if unknown is not None:
            raise ValueError(f"unknown augmentation {unknown!r}; choose of: {', '.join(sorted(KINDS))}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)} must be two shares of an area, 0 < least <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {list(self.ratio)} must be 0 < least <= largest")
        if not all(0 <= amount <= most for amount, most in zip(self.color_jitter, (1, 1, 1, 0.5), strict=True)):
            raise ValueError(f"color_jitter {list(self.color_jitter)} must be 0 to 1 each, the hue's 0 to 0.5")
        return self
