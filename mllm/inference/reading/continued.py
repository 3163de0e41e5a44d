"""Prompts of a model of transformers that is called whole, with keys and values that are kept.

What goes on from them gets the positions of its own whole prompt, and the model's own mask of it. B rows, T tokens, S cached
places, K vocabulary, D width of the language model.
"""

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from mllm.inference.answer import RowWatcher, Stream
from mllm.inference.cache import copy_rows, spread
from mllm.inference.decoding import Contrasted, RowProcessors
from mllm.inference.reading.called import CalledReader, types_of
from mllm.inference.reading.kept import continuing_attention, states_behind
from mllm.inference.reading.reader import Stretch
from mllm.inference.request import Prompt
from mllm.kernels.continued_rows import ContinuedRows


class ContinuedReader(CalledReader):
    """See `Reader`."""

    keeps = True

    def uncut(self, prompt: Prompt, length: int) -> int:
        """Not between images that see each other, and not where images become something else beside the others."""
        length = prompt.uncut(length)
        if not self.model.is_causal:
            types = types_of(prompt, self.processor)
            while length > 0 and types[length - 1] and types[length]:
                length = prompt.uncut(length - 1)
        if self.images.stand_apart(prompt, length):
            return length
        return prompt.tokens.image_spans[0][0]

    def _token_types(
        self, prompts: Sequence[Prompt], starts: Sequence[int], stops: Sequence[int], ids: torch.Tensor
    ) -> torch.Tensor:
        """Of the tokens at `ids`; where the model makes a mask of them int64 [B, longest prompt], from the start of each."""
        if self.model.is_causal:
            return super()._token_types(prompts, starts, stops, ids)
        types = torch.zeros(len(prompts), max(stops), dtype=torch.int64)
        for row, (prompt, stop) in enumerate(zip(prompts, stops, strict=True)):
            types[row, :stop] = types_of(prompt, self.processor)[:stop]
        return types

    @torch.inference_mode()
    def fill(self, cache: DynamicCache, stretch: Stretch) -> None:
        with continuing_attention(self.model, cache):
            states_behind(self.model, cache, ContinuedRows(stretch.mask), stretch.inputs, stretch.positions)

    def spread(self, cache: DynamicCache, lengths: Sequence[int], sizes: Sequence[int]) -> DynamicCache:
        decoder = self.model.adapted_module("language_model")
        return spread(decoder, cache, lengths, sizes) if self.model.is_causal else copy_rows(decoder, cache, sizes)

    @torch.inference_mode()
    def write(
        self,
        cache: DynamicCache,
        cached_mask: torch.Tensor,
        stretch: Stretch,
        rows: Sequence[Stream],
        contrasted: Contrasted | None = None,
    ) -> None:
        processors = RowProcessors([row.decoding for row in rows], contrasted)
        watcher, draws = RowWatcher(rows, processors), any(row.decoding.draws_from_torch for row in rows)
        mask, positions, types = torch.cat([cached_mask, stretch.mask], 1), stretch.positions, stretch.token_types
        inputs, one = stretch.inputs, mask.new_ones(len(rows), 1)
        with continuing_attention(self.model, cache):
            while True:
                hidden = states_behind(self.model, cache, ContinuedRows(mask), inputs, positions)
                scores = processors(inputs["input_ids"], self.model.logits_of(hidden[:, -1]).float())
                chosen = torch.multinomial(scores.softmax(-1), 1) if draws else scores.argmax(-1, keepdim=True)
                watcher(chosen, scores)
                if all(row.finish_reason is not None for row in rows):
                    return
                # What is written is text: it counts on along all axes alike, and is of no image.
                mask, positions = torch.cat([mask, one], 1), positions[..., -1:] + 1
                if types is not None:
                    types = torch.zeros_like(one) if self.model.is_causal else torch.cat([types, one * 0], 1)
                inputs = self.model.whole_inputs(chosen, mask, types, {})

    @torch.inference_mode()
    def logits(self, cache: DynamicCache, cached_mask: torch.Tensor, stretch: Stretch, count: int) -> torch.Tensor:
        mask = torch.cat([cached_mask, stretch.mask], 1)
        with continuing_attention(self.model, cache):
            hidden = states_behind(self.model, cache, ContinuedRows(mask), stretch.inputs, stretch.positions)
            found: torch.Tensor = self.model.logits_of(hidden[:, -count:])
        return found
