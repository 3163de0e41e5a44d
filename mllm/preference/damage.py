"""Damaged images: what a model is shown when its answer shouldn't be likely.

A damaged image has the name of the one that it is made of, marked, and its size, so that it becomes as many image tokens; its
pixels follow from the seed and that name.
"""

import hashlib
import io
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mllm.data.collate import Decode
from mllm.media.decode import read_image
from mllm.media.visual import Visual
from mllm.preference.settings import DamageSettings
from mllm.processor import Processor

MARK = "\0damaged\0"  # no path holds a NUL
SHARES = {"crop": 0.2, "noise": 0.9}


def damaged_name(path: str) -> str:
    """What the damaged copy of an image is called among the images of an example."""
    return MARK + path


def undamaged_name(path: str) -> str:
    """The image that a name, of a damaged one or not, is made of."""
    return path.removeprefix(MARK)


@dataclass(frozen=True)
class Damage:
    """Damages images, alike whenever it is asked: pairs of one image share its damaged copy."""

    settings: DamageSettings
    seed: int

    @property
    def share(self) -> float:
        return self.settings.share or SHARES[self.settings.kind]

    def reading(self, processor: Processor) -> Decode:
        """Reads and fits an image file, damaged where its name says so. Raises UserError for one that can't be read."""

        def read(path: str, visual: Visual) -> list[torch.Tensor]:
            if not path.startswith(MARK):
                return processor.read_fitted_tiles(path, visual)
            name = undamaged_name(path)
            return processor.read_fitted_tiles(_encoded(self.of(read_image(name), name)), visual)

        return read

    def of(self, image: Image.Image, name: str) -> Image.Image:
        """The damaged copy of an RGB image, of the same size."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode(errors="surrogateescape")).digest()
        seed = int.from_bytes(digest[:8], "little")
        return self._crop(image, seed) if self.settings.kind == "crop" else self._noise(image, seed)

    def _crop(self, image: Image.Image, seed: int) -> Image.Image:
        """A part of at most `share` of the area, half of it at least, scaled to the whole's size."""
        rng = random.Random(seed)
        side = (self.share * rng.uniform(0.5, 1.0)) ** 0.5
        width, height = (max(1, int(length * side)) for length in image.size)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        part = (left, top, left + width, top + height)
        return image.resize(image.size, Image.Resampling.BILINEAR, box=part)

    def _noise(self, image: Image.Image, seed: int) -> Image.Image:
        pixels = np.asarray(image, dtype=np.float32)
        noise = np.random.default_rng(seed).integers(0, 256, pixels.shape, dtype=np.uint8)
        return Image.fromarray(np.round((1 - self.share) * pixels + self.share * noise).astype(np.uint8))


def _encoded(image: Image.Image) -> bytes:
    """The image as a file, without loss and without the time that compression takes."""
    file = io.BytesIO()
    image.save(file, "BMP")
    return file.getvalue()
