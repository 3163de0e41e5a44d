"""From an RGB image to the encoder's inputs: tiles of S × S pixels, rescaled and normalized."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mllm.media.frame import cropped, padded_size, padding
from mllm.media.visual import Crop, Fit, Size

RESAMPLE = Image.Resampling.BICUBIC


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
        """float32 [3, S, S] of the whole of `image`: mode RGB, any size."""
        return self._normalized(self._to_square(image))

    def tiles(self, image: Image.Image, crops: Sequence[Crop]) -> list[torch.Tensor]:
        """float32 [3, S, S] of each of `crops` of an image, or of a frame, of mode RGB."""
        return [self._normalized(square) for square in self._squares(image, crops)]

    def fitted_tiles(self, image: Image.Image, crops: Sequence[Crop]) -> list[torch.Tensor]:
        """uint8 [3, S, S] of each of `crops` of an image of mode RGB: what is yet to be rescaled and normalized."""
        squares = (np.asarray(square).transpose(2, 0, 1) for square in self._squares(image, crops))
        return [torch.from_numpy(np.ascontiguousarray(square)) for square in squares]

    def _normalized(self, square: Image.Image) -> torch.Tensor:
        scaled = np.asarray(square, dtype=np.float32) * np.float32(1 / 255)
        array = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))

    def _squares(self, image: Image.Image, crops: Sequence[Crop]) -> Iterator[Image.Image]:
        scaled: dict[Size, Image.Image] = {}
        for crop in crops:
            if crop.scaled is None:
                yield self._to_square(image, crop.fit)
                continue
            if crop.scaled not in scaled:
                height, width = crop.scaled
                scaled[crop.scaled] = image.resize((width, height), RESAMPLE)
            top, left = crop.corner
            square = Image.new("RGB", (self.image_size_px,) * 2)
            square.paste(scaled[crop.scaled], (-left, -top))
            yield square

    def _to_square(self, image: Image.Image, fit: Fit | None = None) -> Image.Image:
        size, fit = self.image_size_px, fit or self.fit
        if fit == "stretch":
            return image.resize((size, size), RESAMPLE)
        if fit == "pad":
            return pad_to_square(image, self.mean).resize((size, size), RESAMPLE)
        scaled, side = cropped((image.height, image.width), size)
        if side == size:
            image = image.resize((scaled[1], scaled[0]), RESAMPLE)
        square = _middle(image, side)
        return square if side == size else square.resize((size, size), RESAMPLE)


def _middle(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _colour(mean: tuple[float, float, float]) -> tuple[int, ...]:
    return tuple(int(m * 255) for m in mean)


def pad_to_square(image: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    """Centre `image` on a square of the encoder's mean colour, as LLaVA-1.5 does in stage 2."""
    if image.width == image.height:
        return image
    height, width = padded_size((image.height, image.width))
    if (width, height) != image.size:
        image = image.resize((width, height), RESAMPLE)
    top, left = padding((height, width))
    canvas = Image.new("RGB", (max(height, width),) * 2, _colour(mean))
    canvas.paste(image, (left, top))
    return canvas
