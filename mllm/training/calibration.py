"""Setting the scale that a new projector starts from, on images of the training data."""

import random

import torch

from mllm.data.dataset import Mixture
from mllm.errors import UserError
from mllm.images.decode import read_image
from mllm.model.multimodal import MultimodalLM
from mllm.processor import Processor

BATCH = 32


@torch.no_grad()
def calibrate_projector(model: MultimodalLM, processor: Processor, mixture: Mixture, count: int) -> None:
    """Calibrate on `count` of the mixture's images (fewer if it has no more), drawn by its seed: the same on every rank.

    Images that can't be decoded, or lie outside their root, are passed over; training reports them. Raises UserError
    when none is left.
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
    features = torch.cat(
        [model.vision_encoder(torch.stack(pixels[i : i + BATCH])) for i in range(0, len(pixels), BATCH)]
    )
    model.projector.calibrate(features.float(), model.language_model.get_input_embeddings().weight)
