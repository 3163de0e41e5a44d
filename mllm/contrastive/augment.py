"""Augmentations of training images: each a pure function of an image, of numbers that it draws, and of its settings.

What a sample draws follows from the run's seed, the step and its place in the step's batch, so ranks, workers and resuming
change nothing. Whether an image is then padded, cropped or stretched to the square is the preparer's, as ever.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageEnhance

from mllm.contrastive.augment_settings import AugmentSettings
from mllm.registry import Registry

RESAMPLE = Image.Resampling.BICUBIC
# As torchvision tries to find a window of the drawn area and ratio before it takes the largest of the nearest ratio.
TRIES = 10


Augmentation = Callable[[Image.Image, random.Random, AugmentSettings, int], Image.Image]
AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")


@dataclass(frozen=True)
class Augmenter:
    """Changes images of mode RGB for a square input of `size_px`, by settings and the seed of a run."""

    settings: AugmentSettings
    size_px: int
    seed: int

    def __call__(self, image: Image.Image, step: int, place: int) -> Image.Image:
        """Augment the image of the sample at `place` in the global batch of `step`."""
        draw = random.Random(f"{self.seed}/augment/{step}/{place}")
        for kind in self.settings.kinds:
            image = AUGMENTATIONS.get(kind)(image, draw, self.settings, self.size_px)
        return image


@AUGMENTATIONS.register("jitter")
def jitter(image: Image.Image, draw: random.Random, settings: AugmentSettings, size_px: int) -> Image.Image:
    """Cut a window of 85–110% of both sides, anywhere, on white: it moves and scales without touching colours."""
    width, height = image.size
    scale, across, down = draw.uniform(0.85, 1.1), draw.uniform(0, 1), draw.uniform(0, 1)
    left = across * width * (1 - scale)
    top = down * height * (1 - scale)
    box = (left, top, left + width * scale, top + height * scale)
    return image.transform(
        image.size, Image.Transform.EXTENT, box, resample=Image.Resampling.BILINEAR, fillcolor=(255, 255, 255)
    )


@AUGMENTATIONS.register("random_resized_crop")
def random_resized_crop(
    image: Image.Image, draw: random.Random, settings: AugmentSettings, size_px: int
) -> Image.Image:
    """Stretch a random window to size_px × size_px, cut and resized in one pass (Szegedy et al. 2015, as torchvision)."""
    return image.resize((size_px, size_px), RESAMPLE, box=_window(image.size, draw, settings))


def _window(size: tuple[int, int], draw: random.Random, settings: AugmentSettings) -> tuple[int, int, int, int]:
    """Draw left, top, right and bottom of a window of an image of `size`, which is (width, height) as PIL has it."""
    width, height = size
    least, largest = settings.ratio
    for _ in range(TRIES):
        area = width * height * draw.uniform(*settings.scale)
        ratio = math.exp(draw.uniform(math.log(least), math.log(largest)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = draw.randint(0, width - across), draw.randint(0, height - down)
            return left, top, left + across, top + down
    ratio = min(max(width / height, least), largest)
    across = min(width, max(1, round(height * ratio)))
    down = min(height, max(1, round(across / ratio)))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


@AUGMENTATIONS.register("flip")
def flip(image: Image.Image, draw: random.Random, settings: AugmentSettings, size_px: int) -> Image.Image:
    """Mirror left and right a share of images."""
    if draw.random() >= settings.flip_probability:
        return image
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@AUGMENTATIONS.register("color_jitter")
def color_jitter(image: Image.Image, draw: random.Random, settings: AugmentSettings, size_px: int) -> Image.Image:
    """Change brightness, contrast, saturation and hue of a share of images, in a drawn order."""
    if draw.random() >= settings.color_jitter_probability:
        return image
    *amounts, hue = settings.color_jitter
    factors = [draw.uniform(1 - amount, 1 + amount) for amount in amounts]
    turn = draw.uniform(-hue, hue)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in draw.sample(range(4), 4):
        image = _turned(image, turn) if number == 3 else enhancers[number](image).enhance(factors[number])
    return image


def _turned(image: Image.Image, turn: float) -> Image.Image:
    """Turn every hue by a share of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    table = [(level + round(turn * 256)) % 256 for level in range(256)]
    return Image.merge("HSV", (hue.point(table), saturation, value)).convert("RGB")


@AUGMENTATIONS.register("grayscale")
def grayscale(image: Image.Image, draw: random.Random, settings: AugmentSettings, size_px: int) -> Image.Image:
    """Turn a share of images grey; they stay of mode RGB."""
    if draw.random() >= settings.grayscale_probability:
        return image
    return image.convert("L").convert("RGB")
