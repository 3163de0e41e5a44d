"""Image features for inference, each distinct image encoded once. N images, P image tokens, D model width."""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from mllm.inference.request import ImageSource, image_identity
from mllm.media.decode import read_image
from mllm.model.multimodal import MultimodalLM
from mllm.processor import Processor

ENCODED_TOGETHER = 16


class ImageFeatures:
    """Features behind the projector by image; beyond `budget_bytes` the least recently used are forgotten.

    They hold for the weights as they are: make a new one after training.
    """

    def __init__(self, model: MultimodalLM, processor: Processor, budget_bytes: int = 256 * 2**20) -> None:
        self.model, self.processor = model, processor
        self.budget_bytes = budget_bytes
        self.encoded = 0
        self._known: OrderedDict[int, torch.Tensor] = OrderedDict()

    @torch.inference_mode()
    def of(self, images: Sequence[ImageSource]) -> torch.Tensor | None:
        """[N, P, D] in the order of `images`, None without any. Raises UserError for an unreadable image."""
        if not images:
            return None
        named = {image_identity(image): image for image in images}
        missing = [name for name in named if name not in self._known]
        for start in range(0, len(missing), ENCODED_TOGETHER):
            chosen = missing[start : start + ENCODED_TOGETHER]
            pixels = torch.stack([self.processor.pixels(read_image(named[name])) for name in chosen])
            self._known.update(zip(chosen, self.model.encode_images(pixels.to(self.model.device)), strict=True))
            self.encoded += len(chosen)
        for name in named:
            self._known.move_to_end(name)
        features = torch.stack([self._known[image_identity(image)] for image in images])
        self._forget()
        return features

    def _forget(self) -> None:
        size = sum(features.numel() * features.element_size() for features in self._known.values())
        while size > self.budget_bytes:
            _, features = self._known.popitem(last=False)
            size -= features.numel() * features.element_size()
