"""Prompts of a model that embeds images apart: their features are kept, and put among the embeddings of words.

B rows, T tokens, S cached places, D width of the language model.
"""

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from mllm.inference.answer import Stream
from mllm.inference.cache import cache_argument, decoding_attention, spread
from mllm.inference.decoding import Contrasted
from mllm.inference.features import ImageFeatures
from mllm.inference.reading.reader import Reader, Stretch, left_padded, writing_arguments
from mllm.inference.request import Prompt
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor


class EmbeddedReader(Reader):
    """See `Reader`. features: each distinct image encoded once."""

    keeps = True

    def __init__(self, model: VisionLanguageModel, processor: Processor) -> None:
        super().__init__(model, processor)
        self.features = ImageFeatures(model, processor)

    def uncut(self, prompt: Prompt, length: int) -> int:
        return prompt.uncut(length)

    def stretch(self, prompts: Sequence[Prompt], starts: Sequence[int], stops: Sequence[int]) -> Stretch:
        ids, mask, places = left_padded(prompts, starts, stops)
        positions, images = torch.zeros_like(ids), []
        for row, (prompt, start, stop) in enumerate(zip(prompts, starts, stops, strict=True)):
            positions[row, places[row]] = torch.arange(start, stop)
            images += prompt.images_between(start, stop)
        device = self.model.device
        inputs = {"inputs_embeds": self.model.embed_features(ids, self.features.of(images))}
        return Stretch(inputs, mask.to(device), positions.to(device))

    @torch.inference_mode()
    def fill(self, cache: DynamicCache, stretch: Stretch) -> None:
        language_model = self.model.generator
        with decoding_attention(language_model, cache):
            language_model.get_decoder()(
                **stretch.inputs,
                attention_mask=stretch.mask,
                position_ids=stretch.positions,
                use_cache=True,
                **cache_argument(language_model, cache),
            )

    def spread(self, cache: DynamicCache, lengths: Sequence[int], sizes: Sequence[int]) -> DynamicCache:
        return spread(self.model.generator, cache, lengths, sizes)

    @torch.inference_mode()
    def write(
        self,
        cache: DynamicCache,
        cached_mask: torch.Tensor,
        stretch: Stretch,
        rows: Sequence[Stream],
        contrasted: Contrasted | None = None,
    ) -> None:
        language_model, embeddings = self.model.generator, stretch.inputs["inputs_embeds"]
        # transformers takes the embeddings from the start and cuts off what the cache holds.
        known = embeddings.new_zeros(1, 1, 1).expand(len(rows), cached_mask.shape[1], embeddings.shape[2])
        with decoding_attention(language_model, cache):
            language_model.generate(
                inputs_embeds=torch.cat([known, embeddings], 1),
                attention_mask=torch.cat([cached_mask, stretch.mask], 1),
                **writing_arguments(self.processor, rows, contrasted),
                **cache_argument(language_model, cache),
            )

    @torch.inference_mode()
    def logits(self, cache: DynamicCache, cached_mask: torch.Tensor, stretch: Stretch, count: int) -> torch.Tensor:
        language_model = self.model.generator
        with decoding_attention(language_model, cache):
            found: torch.Tensor = language_model(
                **stretch.inputs,
                attention_mask=torch.cat([cached_mask, stretch.mask], 1),
                position_ids=stretch.positions,
                use_cache=True,
                logits_to_keep=count,
                **cache_argument(language_model, cache),
            ).logits
        return found
