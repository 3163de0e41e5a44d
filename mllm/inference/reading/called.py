"""Prompts of a model that is called with ids and what its images became. B rows, T tokens."""

from collections.abc import Sequence

import torch

from mllm.batch import join_media
from mllm.inference.reading.prepared import PreparedImages
from mllm.inference.reading.reader import Reader, Stretch, left_padded
from mllm.inference.request import Prompt
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor


class CalledReader(Reader):
    """Lays stretches out for such a model. images: what those of each sample became, prepared once."""

    def __init__(self, model: VisionLanguageModel, processor: Processor) -> None:
        super().__init__(model, processor)
        self.images = PreparedImages(processor)

    def stretch(self, prompts: Sequence[Prompt], starts: Sequence[int], stops: Sequence[int]) -> Stretch:
        device = self.model.device
        ids, mask, places = left_padded(prompts, starts, stops)
        positions = torch.zeros(self.processor.position_axes or 1, *ids.shape, dtype=torch.int64)
        media = []
        for row, (prompt, start, stop) in enumerate(zip(prompts, starts, stops, strict=True)):
            positions[:, row, places[row]] = self._positions(prompt)[..., start:stop]
            media.append(self.images.of(prompt.images_between(start, stop)))
        types = self._token_types(prompts, starts, stops, ids) if self.processor.has_token_types else None
        told = None if types is None else types.to(device)
        joined = {name: tensor.to(device) for name, tensor in join_media(media).items()}
        inputs = self.model.whole_inputs(ids.to(device), mask.to(device), told, joined)
        positions = (positions if self.processor.position_axes else positions[0]).to(device)
        return Stretch(inputs, mask.to(device), positions, told)

    def _positions(self, prompt: Prompt) -> torch.Tensor:
        """int64 [T] or [axes, T] of the whole prompt, whose images are asked where they count along axes of their own."""
        axes = self.processor.position_axes
        return self.processor.positions(prompt.tokens, self.images.of(prompt.shown) if axes else {})

    def _token_types(
        self, prompts: Sequence[Prompt], starts: Sequence[int], stops: Sequence[int], ids: torch.Tensor
    ) -> torch.Tensor:
        """int64 [B, T] of the tokens at `ids`."""
        types = torch.zeros_like(ids)
        for row, (prompt, start, stop) in enumerate(zip(prompts, starts, stops, strict=True)):
            own = types_of(prompt, self.processor)
            types[row, ids.shape[1] - (stop - start) :] = own[start:stop]
        return types


def types_of(prompt: Prompt, processor: Processor) -> torch.Tensor:
    """int64 [T]: which of a prompt's tokens are of an image; 0 for all where the model isn't told."""
    found = processor.token_types(prompt.tokens)
    return torch.zeros(len(prompt), dtype=torch.int64) if found is None else found
