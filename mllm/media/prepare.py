"""From an RGB image to the encoder's inputs: tiles of S × S pixels, rescaled and normalized."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mllm.media.frame import cropped, padded_size, padding
from mllm.media.visual import WHOLE, Crop, Fit, Size

BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class ImagePreparer:
    """Makes [C, S, S] float32 pixels, S = `image_size_px`; `mean` and `std` per channel in 0–1.

    Channels are RGB, three for each encoder that sees the image, with its own mean, deviation and colour around a padded
    image. other_sizes_px: of the encoders but the first. S is then the largest, and what a smaller one sees is in the upper
    left of its channels; a tile that is cut out is scaled to it. resample: the filter that images are resized by.

    The arithmetic is that of transformers' Pillow-backed CLIP and SigLIP image processors (resize in 8 bit, bicubic by
    default, then rescale, then normalize), so that an exported model sees equal pixels.
    """

    image_size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit = "pad"
    other_sizes_px: tuple[int, ...] = ()
    resample: Image.Resampling = BICUBIC

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def side_px(self) -> int:
        """S"""
        return max(self.image_size_px, *self.other_sizes_px, 0)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """float32 [C, S, S] of the whole of `image`: mode RGB, any size."""
        return self.tiles(image, [WHOLE])[0]

    def tiles(self, image: Image.Image, crops: Sequence[Crop]) -> list[torch.Tensor]:
        """float32 [C, S, S] of each of `crops` of an image, or of a frame, of mode RGB."""
        return [self._normalized(planes) for planes in self._planes(image, crops)]

    def fitted_tiles(self, image: Image.Image, crops: Sequence[Crop]) -> list[torch.Tensor]:
        """uint8 [C, S, S] of each of `crops` of an image of mode RGB: what is yet to be rescaled and normalized."""
        return [torch.from_numpy(planes) for planes in self._planes(image, crops)]

    def _normalized(self, planes: np.ndarray) -> torch.Tensor:
        mean, std = (np.asarray(numbers, np.float32)[:, None, None] for numbers in (self.mean, self.std))
        scaled = np.multiply(planes, np.float32(1 / 255), dtype=np.float32)
        scaled -= mean
        scaled /= std
        return torch.from_numpy(scaled)

    def _planes(self, image: Image.Image, crops: Sequence[Crop]) -> Iterator[np.ndarray]:
        """uint8 [C, S, S] of each of `crops`."""
        sides = (self.image_size_px, *self.other_sizes_px)
        colours = [self.mean[first : first + 3] for first in range(0, self.channels, 3)]
        scaled: dict[Size, Image.Image] = {}
        for crop in crops:
            if crop.scaled is None:
                fit = crop.fit or self.fit
                yield self._stacked(
                    [self._to_square(image, side, fit, colour) for side, colour in zip(sides, colours, strict=True)]
                )
                continue
            if crop.scaled not in scaled:
                height, width = crop.scaled
                scaled[crop.scaled] = image.resize((width, height), self.resample)
            top, left = crop.corner
            square = Image.new("RGB", (self.image_size_px,) * 2)
            square.paste(scaled[crop.scaled], (-left, -top))
            yield self._stacked([self._to_square(square, side, "stretch", ()) for side in sides])

    def _stacked(self, squares: Sequence[Image.Image]) -> np.ndarray:
        """uint8 [C, S, S] of a square for each encoder."""
        if len(squares) == 1:
            return np.ascontiguousarray(np.asarray(squares[0]).transpose(2, 0, 1))
        planes = np.zeros((self.channels, self.side_px, self.side_px), np.uint8)
        for first, square in enumerate(squares):
            planes[3 * first : 3 * first + 3, : square.height, : square.width] = np.asarray(square).transpose(2, 0, 1)
        return planes

    def _to_square(self, image: Image.Image, size: int, fit: Fit, colour: Sequence[float]) -> Image.Image:
        """`image` as size × size pixels; colour: around one that is padded."""
        if fit == "stretch":
            return image if image.size == (size, size) else image.resize((size, size), self.resample)
        if fit == "pad":
            return pad_to_square(image, colour, self.resample).resize((size, size), self.resample)
        scaled, side = cropped((image.height, image.width), size)
        if side == size:
            image = image.resize((scaled[1], scaled[0]), self.resample)
        square = _middle(image, side)
        return square if side == size else square.resize((size, size), self.resample)


def _middle(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _colour(mean: Sequence[float]) -> tuple[int, ...]:
    return tuple(int(m * 255) for m in mean)


def pad_to_square(image: Image.Image, mean: Sequence[float], resample: Image.Resampling = BICUBIC) -> Image.Image:
    """Centre `image` on a square of the encoder's mean colour, as LLaVA-1.5 does in stage 2."""
    if image.width == image.height:
        return image
    height, width = padded_size((image.height, image.width))
    if (width, height) != image.size:
        image = image.resize((width, height), resample)
    top, left = padding((height, width))
    canvas = Image.new("RGB", (max(height, width),) * 2, _colour(mean))
    canvas.paste(image, (left, top))
    return canvas
