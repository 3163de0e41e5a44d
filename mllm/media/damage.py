"""Damaged images: what a model is shown when its answer shouldn't be likely."""

import random
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from mllm.errors import UserError

Kind = Literal["crop", "noise"]


@dataclass(frozen=True)
class Damage:
    """What is done to an image, whose size stays as it is.

    kind: `crop` shows a part of it in the whole's size, `noise` mixes noise into every pixel. share: of the area that a crop
    keeps, at most, or of a pixel that is noise; from 0 to 1. seed: of the place of the part, or of the noise.
    """

    kind: Kind
    share: float
    seed: int

    @property
    def change(self) -> str:
        """Its name within a reference (`mllm.media.altered`)."""
        return f"{self.kind},{self.share!r},{self.seed}"

    @classmethod
    def named(cls, change: str) -> "Damage | None":
        """The damage that a change names; None for any other change. Raises UserError for one that is no number."""
        kind, *fields = change.split(",")
        if kind not in get_args(Kind):
            return None
        try:
            share, seed = fields
            return cls("crop" if kind == "crop" else "noise", float(share), int(seed))
        except ValueError:
            raise UserError(f"no image is altered by {change!r}; a damage is {kind},SHARE,SEED") from None

    def done_to(self, picture: Image.Image) -> Image.Image:
        """The damaged copy of a picture of mode RGB."""
        return self._cropped(picture) if self.kind == "crop" else self._noisy(picture)

    def _cropped(self, picture: Image.Image) -> Image.Image:
        """At most `share` of the area, half of that at least."""
        rng = random.Random(self.seed)
        side = (self.share * rng.uniform(0.5, 1.0)) ** 0.5
        width, height = (max(1, int(length * side)) for length in picture.size)
        left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
        part = (left, top, left + width, top + height)
        return picture.resize(picture.size, Image.Resampling.BILINEAR, box=part)

    def _noisy(self, picture: Image.Image) -> Image.Image:
        pixels = np.asarray(picture, dtype=np.float32)
        noise = np.random.default_rng(self.seed).integers(0, 256, pixels.shape, dtype=np.uint8)
        return Image.fromarray(np.rint((1 - self.share) * pixels + self.share * noise).astype(np.uint8))
