"""Image features for inference, each distinct image encoded once. D model width."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import torch

from mllm.inference.request import PromptImage
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor

TILES_TOGETHER = 16


class ImageFeatures:
    """Features behind the projector by image; beyond `budget_bytes` the least recently used are forgotten.

    They hold for the weights as they are: make a new one after training.
    """

    def __init__(self, model: VisionLanguageModel, processor: Processor, budget_bytes: int = 256 * 2**20) -> None:
        self.model, self.processor = model, processor
        self.budget_bytes = budget_bytes
        self.encoded = 0
        self._known: OrderedDict[int, torch.Tensor] = OrderedDict()

    @torch.inference_mode()
    def of(self, images: Sequence[PromptImage]) -> list[torch.Tensor]:
        """[image tokens, D] of each of `images`, in their order. Raises UserError for an unreadable image."""
        names = [image.identity for image in images]
        missing = {name: image for name, image in zip(names, images, strict=True) if name not in self._known}
        for chosen in _chunks(list(missing), [image.visual.tile_count for image in missing.values()]):
            self._encode({name: missing[name] for name in chosen})
        for name in names:
            self._known.move_to_end(name)
        features = [self._known[name] for name in names]
        self._forget()
        return features

    def _encode(self, images: Mapping[int, PromptImage]) -> None:
        """Encode `images`, by identity, in one call of the encoder."""
        visuals = [image.visual for image in images.values()]
        tiles = [t for image in images.values() for t in self.processor.read_tiles(image.source, image.visual)]
        features = self.model.encode_images(torch.stack(tiles).to(self.model.device), visuals)
        each = features.split([visual.token_count for visual in visuals])
        if len(visuals) > 1:
            # A part of a tensor keeps all of its memory, also when the other parts are forgotten.
            each = tuple(part.clone() for part in each)
        self._known.update(zip(images, each, strict=True))
        self.encoded += len(images)

    def _forget(self) -> None:
        size = sum(features.numel() * features.element_size() for features in self._known.values())
        while size > self.budget_bytes:
            _, features = self._known.popitem(last=False)
            size -= features.numel() * features.element_size()


def _chunks(names: Sequence[int], tile_counts: Sequence[int]) -> Iterator[list[int]]:
    """`names` in order, in parts of at most TILES_TOGETHER tiles or of one image that has more."""
    part: list[int] = []
    tiles = 0
    for name, count in zip(names, tile_counts, strict=True):
        if part and tiles + count > TILES_TOGETHER:
            yield part
            part, tiles = [], 0
        part.append(name)
        tiles += count
    if part:
        yield part
