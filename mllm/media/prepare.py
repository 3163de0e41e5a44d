"""From an RGB image to the encoder's input: fit to a square, rescale, normalize."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

Fit = Literal["pad", "crop", "stretch"]
RESAMPLE = Image.Resampling.BICUBIC
MAX_PADDED_SIDE_PX = 8192


@dataclass(frozen=True)
class ImagePreparer:
    """Makes [3, S, S] float32 pixels, S = `image_size_px`; `mean` and `std` per RGB channel in 0–1.

    The arithmetic is that of transformers' Pillow-backed CLIP and SigLIP image processors (bicubic resize in 8 bit,
    then rescale, then normalize), so that an exported model sees equal pixels.
    """

    image_size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "pad"

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """`image`: mode RGB, any size. Returns float32 [3, S, S]."""
        square = self._to_square(image)
        scaled = np.asarray(square, dtype=np.float32) * np.float32(1 / 255)
        array = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))

    def fitted(self, image: Image.Image) -> torch.Tensor:
        """uint8 [3, S, S] of an image of mode RGB and any size: what is yet to be rescaled and normalized."""
        return torch.from_numpy(np.ascontiguousarray(np.asarray(self._to_square(image)).transpose(2, 0, 1)))

    def _to_square(self, image: Image.Image) -> Image.Image:
        size = self.image_size_px
        if self.fit == "stretch":
            return image.resize((size, size), RESAMPLE)
        if self.fit == "pad":
            return pad_to_square(image, self.mean).resize((size, size), RESAMPLE)
        width, height = image.size
        short, long = min(width, height), max(width, height)
        scaled_long = max(size, int(size * long / short))
        scaled = (scaled_long, size) if width > height else (size, scaled_long)
        # Cropping the source first keeps a 1×10000 image from being scaled to 640,000 pixels of length.
        image = image.resize(scaled, RESAMPLE) if scaled_long <= 64 * size else _middle(image, short)
        if min(image.size) != size:
            image = image.resize((size, size), RESAMPLE)
        return _middle(image, size)


def _middle(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def pad_to_square(image: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    """Centre `image` on a square of the encoder's mean colour, as LLaVA-1.5 does in stage 2."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    if side > MAX_PADDED_SIDE_PX:
        # A 1×100000 strip would become a square of 10 gigapixels.
        scale = MAX_PADDED_SIDE_PX / side
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), RESAMPLE)
        (width, height), side = image.size, MAX_PADDED_SIDE_PX
    canvas = Image.new("RGB", (side, side), tuple(int(m * 255) for m in mean))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas
