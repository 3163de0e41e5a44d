"""Preference pairs as examples that are never parted, and a micro-batch of them.

A targets, S supervised tokens of them all: the answers of a batch follow each other. P pairs, K sides of each: the chosen and
the rejected one, and the chosen one beside damaged images where the loss asks for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mllm.batch import Batch, answers_of
from mllm.conversation.pair import PreferencePair
from mllm.conversation.schema import Sample, media_kinds
from mllm.data.example import Example, render_example
from mllm.data.packing import Row
from mllm.data.settings import DataSettings
from mllm.preference.damage import Damaging
from mllm.processor import Processor

# Kinds of pairs that teach nothing: they are listed, and the run goes on.
WITHOUT_LESSON = ("no_difference", "nothing_supervised")


@dataclass(frozen=True)
class RenderedPair:
    """The sides of a pair, as `Outline` has them of one sample: `length` and `cut_tokens` are the sums of both answers'."""

    sample_id: str
    sides: tuple[Example, ...]

    @property
    def length(self) -> int:
        return sum(side.length for side in self.sides[:2])

    @property
    def cut_tokens(self) -> int:
        return sum(side.cut_tokens for side in self.sides[:2])


def render_pair(sample: Sample, processor: Processor, data: DataSettings, damaging: Damaging | None) -> RenderedPair:
    """Render both sides of a pair for training. Raises BadSampleError, with its kind, when it can't be learned from.

    damaging: names damaged images, beside which a third side shows the chosen answer; None for two sides.
    """
    if not isinstance(sample, PreferencePair):
        raise sample.bad("pair", "is no preference pair; a run with `preference` learns from pairs alone")
    sample.check()
    chosen, rejected = (
        render_example(side, processor, data.max_length_tokens, data.on_too_long) for side in sample.sides
    )
    if chosen.tokens.input_ids == rejected.tokens.input_ids and chosen.images == rejected.images:
        raise sample.bad("no_difference", "has sides that are equal where the model reads them")
    if damaging is None:
        return RenderedPair(sample.id, (chosen, rejected))
    if "video" in media_kinds(sample.messages):
        raise sample.bad("video", "shows a video, and the term `image` damages images alone")
    damaged = replace(chosen, images=tuple(damaging.reference(path) for path in chosen.images))
    return RenderedPair(sample.id, (chosen, rejected, damaged))


@dataclass(frozen=True)
class PairBatch:
    """Rows of pairs, and which of their answers belong together.

    lengths: int64 [A], targets of each answer. weights: float32 [S], what each counts. sides: int64 [K, P], which answer each
    side of each pair is. reference: float32 [S], log-probabilities that are known; None where they are computed.
    """

    rows: Batch
    lengths: torch.Tensor
    weights: torch.Tensor
    sides: torch.Tensor
    reference: torch.Tensor | None = None

    def to(self, device: torch.device) -> "PairBatch":
        return self._with(self.rows.to(device), [tensor.to(device, non_blocking=True) for tensor in self._own()])

    def pin_memory(self) -> "PairBatch":
        return self._with(self.rows.pin_memory(), [tensor.pin_memory() for tensor in self._own()])

    def tensors(self) -> list[torch.Tensor]:
        return [*self.rows.tensors(), *self._own()]

    def _own(self) -> list[torch.Tensor]:
        known = [] if self.reference is None else [self.reference]
        return [self.lengths, self.weights, self.sides, *known]

    @staticmethod
    def _with(rows: Batch, own: Sequence[torch.Tensor]) -> "PairBatch":
        return PairBatch(rows, own[0], own[1], own[2], own[3] if len(own) > 3 else None)


def answers_in(batch: Batch, rows: Sequence[Row]) -> tuple[list[Example], torch.Tensor]:
    """The examples of the answers that a batch of `rows` has targets of, in order, and its number of targets each, [A]."""
    places, lengths = answers_of(batch)
    return [rows[row].segments[segment].example for row, segment in places], lengths


def pair_batch(batch: Batch, rows: Sequence[Row], pairs: Sequence[RenderedPair], side_count: int) -> PairBatch:
    """The batch of `rows` with what is known of its pairs, of `side_count` sides each; `pairs`: those that stand in it.

    A pair of which some side has no targets, since an image of it can't be decoded, isn't learned from.
    """
    examples, lengths = answers_in(batch, rows)
    number = {id(example): n for n, example in enumerate(examples)}
    columns = [[number.get(id(side), -1) for side in pair.sides] for pair in pairs]
    whole = [column for column in columns if min(column) >= 0]
    sides = torch.tensor(whole, dtype=torch.int64).reshape(len(whole), side_count).T.contiguous()
    weights = [weight for example in examples for weight in answer_weights(example)]
    return PairBatch(batch, lengths, torch.tensor(weights, dtype=torch.float32), sides)


def answer_weights(example: Example) -> list[float]:
    """What each target of an example counts, in order."""
    tokens = example.tokens
    weights = tokens.weights or (1.0,) * len(tokens.input_ids)
    return [weight for weight, is_learned in zip(weights, tokens.supervised, strict=True) if is_learned]
