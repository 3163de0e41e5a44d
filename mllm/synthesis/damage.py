"""Images that lost what an answer is about: pairs of a right answer with its image, and with that image damaged (mDPO).

A crop keeps a window of at most a fifth of the area, drawn to the size that the image had (Wang et al. 2024). Noise is the
image after 500 of 1000 steps of diffusion, as visual contrastive decoding draws it (Leng et al. 2024).
"""

import hashlib
import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from mllm.conversation.pair import PreferencePair
from mllm.errors import UserError
from mllm.files import write_bytes_atomically
from mllm.media.decode import read_image
from mllm.media.ref import is_stored
from mllm.synthesis.context import Context
from mllm.synthesis.settings import DamageSettings

LARGEST_SHARE = 0.2  # of the area, that a crop keeps
STEPS, STEP = 1000, 500
LEAST_RATE, MOST_RATE = 1e-5, 5e-3  # of noise added in a step, along a sigmoid from -6 to 6


def check_place(context: Context) -> None:
    """Raise UserError for an image that lies inside a file: there is no folder for damaged ones."""
    if is_stored(context.location):
        reason = f"image {context.image!r} lies inside a file, and damaged images are written below the image root"
        raise UserError(f"damage.share: {reason}; extract the images, or set it to 0")


def damaged(
    pair: PreferencePair, context: Context, root: Path, settings: DamageSettings, rng: random.Random, by: str
) -> PreferencePair:
    """`pair` as a pair of its chosen answer with the image, and with the image damaged, which is written below `root`.

    by: the command that writes. Raises UserError for an image that can't be read.
    """
    kind = rng.choice(settings.kinds)
    seed = rng.getrandbits(63)
    name = hashlib.sha256(f"{context.image}\n{kind}\n{seed}".encode()).hexdigest()[:24]
    path = Path(settings.folder) / f"{name}.png"
    if not (root / path).is_file():  # of an earlier run: its name tells all that it depends on
        image = read_image(context.location)
        image = cropped(image, seed) if kind == "crop" else noised(image, seed)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        (root / path).parent.mkdir(exist_ok=True)
        write_bytes_atomically(root / path, buffer.getvalue(), by)
    changes = {"rejected": pair.chosen, "rejected_images": (str(path),), "kind": f"damaged_{kind}", "scores": None}
    return pair.model_copy(update=changes)


def cropped(image: Image.Image, seed: int) -> Image.Image:
    """A window of the image, of up to a fifth of its area and its shape, as large as the image was."""
    rng = random.Random(seed)
    side = (LARGEST_SHARE * (1 - rng.random())) ** 0.5
    width, height = (max(1, int(side * length)) for length in image.size)
    left, top = (rng.randint(0, length - own) for length, own in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.BICUBIC)


def noised(image: Image.Image, seed: int) -> Image.Image:
    """The image in noise."""
    rates = LEAST_RATE + (MOST_RATE - LEAST_RATE) / (1 + np.exp(-np.linspace(-6, 6, STEPS)))
    kept = float(np.cumprod(1 - rates)[STEP])
    pixels = np.asarray(image, dtype=np.float64) / 127.5 - 1
    noise = np.random.Generator(np.random.Philox(seed)).standard_normal(pixels.shape)
    mixed = kept**0.5 * pixels + (1 - kept) ** 0.5 * noise
    return Image.fromarray(np.clip(np.rint((mixed + 1) * 127.5), 0, 255).astype(np.uint8))
