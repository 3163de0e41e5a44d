"""What answers and likelihoods need of a model: to read stretches of prompts behind what a cache holds.

B rows, T tokens of a stretch, S cached places, K vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList

from mllm.inference.answer import RowWatcher, Stream
from mllm.inference.decoding import Contrasted, RowProcessors, generation_config
from mllm.inference.request import Prompt
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor


@dataclass(frozen=True)
class Stretch:
    """Places [start, stop) of several prompts, padded on the left.

    inputs: what the model takes, by name. mask: int64 [B, T], 0 at padding. positions: int64 [B, T] or [axes, B, T].
    token_types: which tokens are of an image, for a model that is told.
    """

    inputs: Mapping[str, torch.Tensor]
    mask: torch.Tensor
    positions: torch.Tensor
    token_types: torch.Tensor | None = None


class Reader(ABC):
    """Reads prompts with one model. keeps: whether what was computed of how a prompt opens can be gone on from."""

    keeps: bool

    def __init__(self, model: VisionLanguageModel, processor: Processor) -> None:
        self.model, self.processor = model, processor

    @abstractmethod
    def uncut(self, prompt: Prompt, length: int) -> int:
        """`length`, or less: where a prompt can be cut into an opening that is kept and a rest that goes on from it."""

    @abstractmethod
    def stretch(self, prompts: Sequence[Prompt], starts: Sequence[int], stops: Sequence[int]) -> Stretch:
        """Places [start, stop) of each prompt. Raises UserError for an unreadable image."""

    @abstractmethod
    def fill(self, cache: DynamicCache, stretch: Stretch) -> None:
        """Add keys and values of `stretch` to an empty cache."""

    @abstractmethod
    def spread(self, cache: DynamicCache, lengths: Sequence[int], sizes: Sequence[int]) -> DynamicCache:
        """A cache in which each row of `cache`, of `lengths` places padded on the left, stands for `sizes` rows."""

    @abstractmethod
    def write(
        self,
        cache: DynamicCache,
        cached_mask: torch.Tensor,
        stretch: Stretch,
        rows: Sequence[Stream],
        contrasted: Contrasted | None = None,
    ) -> None:
        """Write the answers of `rows` behind what `cache` holds and `stretch` adds; cached_mask: int64 [B, S]. contrasted: as
        `RowProcessors` takes it.

        The cache grows by all tokens but the last ones, where the reader keeps them.
        """

    @abstractmethod
    def logits(self, cache: DynamicCache, cached_mask: torch.Tensor, stretch: Stretch, count: int) -> torch.Tensor:
        """Logits [B, count, K] at the last places of `stretch`, behind what `cache` holds."""


def settled(reader: Reader, prompts: Sequence[Prompt], length: int) -> int:
    """`length`, or less: where all of `prompts`, which open alike, can be cut."""
    while (cut := min(reader.uncut(prompt, length) for prompt in prompts)) < length:
        length = cut
    return length


def writing_arguments(processor: Processor, rows: Sequence[Stream], contrasted: Contrasted | None) -> dict[str, Any]:
    """What makes transformers' `generate` write the answers of `rows`, each by its own decoding; contrasted: as
    `RowProcessors` takes it."""
    processors = RowProcessors([row.decoding for row in rows], contrasted)
    longest = max(row.decoding.max_new_tokens for row in rows)
    # How each row samples is the business of its own processors.
    temperature = float(any(row.decoding.draws_from_torch for row in rows))
    return {
        "generation_config": generation_config(processor, longest, temperature),
        "logits_processor": LogitsProcessorList([processors]),
        "stopping_criteria": StoppingCriteriaList([RowWatcher(rows, processors)]),
    }


def left_padded(
    prompts: Sequence[Prompt], starts: Sequence[int], stops: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, list[slice]]:
    """Ids and mask, int64 [B, T], of places [start, stop) of each prompt, padded on the left, and where each row stands."""
    longest = max(stop - start for start, stop in zip(starts, stops, strict=True))
    ids, mask = (torch.zeros(len(prompts), longest, dtype=torch.int64) for _ in range(2))
    places = []
    for row, (prompt, start, stop) in enumerate(zip(prompts, starts, stops, strict=True)):
        places.append(slice(longest - (stop - start), longest))
        ids[row, places[-1]] = torch.tensor(prompt.tokens.input_ids[start:stop])
        mask[row, places[-1]] = 1
    return ids, mask, places
