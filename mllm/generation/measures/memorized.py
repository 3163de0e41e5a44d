"""Whether generated pictures are copies of training images: the nearest one of each, by features and by pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from mllm.inference.dual_features import CHUNK
from mllm.media.decode import read_image

SIDE_PX = 32
COPY_RMS = 0.02


@dataclass(frozen=True)
class Nearest:
    """The training image that a picture is most like.

    cosine: of their features, the highest over all training images, which is of `by_features`. rms: of their pixels, at
    32 × 32, from 0 to 1: the lowest, of `by_pixels`.
    """

    by_features: Path
    cosine: float
    by_pixels: Path
    rms: float

    @property
    def is_copy(self) -> bool:
        """Whether pixels differ by less than 2% of their range."""
        return self.rms < COPY_RMS


def small_pixels(paths: Sequence[Path | str]) -> torch.Tensor:
    """float32 [N, 3 · 32 · 32], from 0 to 1: each picture stretched to 32 × 32."""
    rows = []
    for path in paths:
        small = read_image(path).resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
        rows.append(torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8))
    return torch.stack(rows).float() / 255


def nearest_images(
    pictures: Sequence[Path], features: torch.Tensor, training: Sequence[Path], training_features: torch.Tensor
) -> list[Nearest]:
    """The nearest of `training` to each of `pictures`, whose normalized features are [N, E]."""
    pixels, training_pixels = small_pixels(pictures), small_pixels(training)
    found = []
    for start in range(0, len(pictures), CHUNK):
        cosines = (features[start : start + CHUNK] @ training_features.T).max(1)
        apart = torch.cdist(pixels[start : start + CHUNK], training_pixels).min(1)
        scale = pixels.shape[1] ** 0.5
        rows = zip(
            *(tensor.tolist() for tensor in (*cosines, *apart)),
            strict=True,
        )
        found += [
            Nearest(training[by_features], cosine, training[by_pixels], distance / scale)
            for cosine, by_features, distance, by_pixels in rows
        ]
    return found
