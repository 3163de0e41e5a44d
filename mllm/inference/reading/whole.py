"""Prompts of a model whose states can't be kept: each answer is computed from the start. B rows, T tokens, K vocabulary."""

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from mllm.inference.answer import Stream
from mllm.inference.cache import plain_attention
from mllm.inference.decoding import Contrasted
from mllm.inference.reading.called import CalledReader
from mllm.inference.reading.reader import Stretch, writing_arguments
from mllm.inference.request import Prompt


class WholeReader(CalledReader):
    """See `Reader`. Caches stay empty: transformers' `generate` has one of its own while it writes."""

    keeps = False

    def uncut(self, prompt: Prompt, length: int) -> int:
        return 0

    def fill(self, cache: DynamicCache, stretch: Stretch) -> None:
        raise NotImplementedError(f"{type(self.model).__name__} reads prompts from the start")

    def spread(self, cache: DynamicCache, lengths: Sequence[int], sizes: Sequence[int]) -> DynamicCache:
        raise NotImplementedError(f"{type(self.model).__name__} reads prompts from the start")

    @torch.inference_mode()
    def write(
        self,
        cache: DynamicCache,
        cached_mask: torch.Tensor,
        stretch: Stretch,
        rows: Sequence[Stream],
        contrasted: Contrasted | None = None,
    ) -> None:
        with plain_attention(self.model.adapted_module("language_model")):
            self.model.generator.generate(**stretch.inputs, **writing_arguments(self.processor, rows, contrasted))

    @torch.inference_mode()
    def logits(self, cache: DynamicCache, cached_mask: torch.Tensor, stretch: Stretch, count: int) -> torch.Tensor:
        with plain_attention(self.model.adapted_module("language_model")):
            hidden = self.model.generator.base_model(
                **stretch.inputs, position_ids=stretch.positions, use_cache=False
            ).last_hidden_state
            found: torch.Tensor = self.model.logits_of(hidden[:, -count:])
        return found
