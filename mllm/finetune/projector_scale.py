"""Setting the scale that a new projector starts from, on images of the training data."""

import random

import torch

from mllm.data.dataset import Mixture
from mllm.errors import UserError
from mllm.media.decode import read_image
from mllm.model.encoders import VisionEncoder
from mllm.model.projectors import Projector
from mllm.processor import Processor

BATCH = 32


@torch.no_grad()
def calibrate_projector(
    projector: Projector,
    encoder: VisionEncoder,
    embeddings: torch.Tensor,
    processor: Processor,
    mixture: Mixture,
    count: int,
) -> None:
    """Calibrate on `count` of the mixture's images (fewer if it has no more), drawn by its seed.

    embeddings: the language model's, [K, D]. Images that can't be decoded, or lie outside their root, are passed over;
    training reports them. Raises UserError when none is left.
    """
    paths = mixture.images()
    random.Random(f"{mixture.seed}/calibration").shuffle(paths)
    pixels: list[torch.Tensor] = []
    for path in paths:
        if len(pixels) == count:
            break
        if not mixture.holds_image(path):
            continue
        try:
            pixels.append(processor.pixels(read_image(path)))
        except UserError:
            continue
    if not pixels:
        raise UserError(
            "model.projector.calibration_images: the recipe has no readable image to calibrate on; set it to 0"
        )
    features = torch.cat([encoder(torch.stack(pixels[i : i + BATCH])) for i in range(0, len(pixels), BATCH)])
    projector.calibrate(features.float(), embeddings)
