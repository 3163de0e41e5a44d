"""Instruction tuning (and alignment) as a task of the loop.

A step's global batch is a set of samples fixed by (seed, step) alone. Every rank lays it out in the same way and takes
its share of the rows, so the number of ranks, the micro-batch size and packing change the layout of the work and nothing
else. Several ranks lay out what was counted before (`mllm.data.counts`), and each renders what its own rows hold.
"""

import math
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from mllm.conversation.schema import Sample
from mllm.data.balance import exchanged
from mllm.data.collate import Decode, ImageDecoder, collate, shown_images
from mllm.data.counts import Counted, TokenCounts, can_be_counted
from mllm.data.dataset import Mixture, group_by_length
from mllm.data.example import Example, render_example
from mllm.data.packing import E, PlacedSegment, Row, is_tiled, pack
from mllm.data.settings import DataSettings
from mllm.data.sizes import estimated_image_tokens
from mllm.errors import BadSampleError, UserError
from mllm.finetune.flops import UnitFlops, Work, causal_pairs
from mllm.finetune.settings import FinetuneSettings
from mllm.processor import Processor
from mllm.training.settings import LoopSettings
from mllm.training.task import MicroBatch, StepWindow, TaskOutput

GPU_LENGTH_MULTIPLE = 128
TOO_LARGE = ("too_long", "too_many_image_tokens")  # kinds of samples that are dropped where those too long are


def length_multiple(device: torch.device) -> int:
    """What rows are padded to a multiple of: on a GPU to few lengths, so that its allocator and compiled kernels meet the
    same ones again; on a CPU no more than they need."""
    return 1 if device.type == "cpu" else GPU_LENGTH_MULTIPLE


class Lengths(Protocol):
    """What is said of a sample that was cut: tokens, and those of them that are left out."""

    @property
    def sample_id(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def cut_tokens(self) -> int: ...


Told = TypeVar("Told", bound=Lengths)


@dataclass
class Skips:
    """Bad samples of one window, or the error at the first of them."""

    raise_at_once: bool
    found: list[tuple[str, str, str]]

    def __call__(self, error: BadSampleError) -> None:
        if self.raise_at_once:
            raise error
        self.found.append((error.sample_id, error.kind, error.reason))


class InstructionTask:
    """Samples of a mixture through a processor into micro-batches, and their loss.

    listed_kinds: of samples that are left out whatever the settings say, since they teach nothing. has_second_model: whether
    one that only computes is in memory, too.
    """

    depends_on_weights = False
    listed_kinds: tuple[str, ...] = ()
    has_second_model = False

    def __init__(
        self,
        mixture: Mixture,
        processor: Processor,
        data: DataSettings,
        loop: LoopSettings,
        costs: UnitFlops | None = None,
        length_multiple: int = 1,
    ) -> None:
        """costs: of the model that will be trained, for `MicroBatch.flops` and for what a tile weighs beside a token; without
        them it weighs as its image tokens do. length_multiple: of rows, in tokens."""
        self.mixture, self.processor, self.data, self.loop, self.costs = mixture, processor, data, loop, costs
        self.length_multiple = length_multiple
        self._decoder = ImageDecoder(processor, data.workers)
        self._counts: TokenCounts | None = None
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.mixture.epoch_length / self.loop.global_batch_size)

    def sample_indices(self, step: int) -> list[int]:
        """Indices of the samples of optimizer step `step`; the last step of an epoch may have fewer."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch_order(epoch))
        size = self.loop.global_batch_size
        return self._order[1][index * size : (index + 1) * size]

    def _epoch_order(self, epoch: int) -> list[int]:
        if not self.data.group_by_length:
            return self.mixture.order(epoch)
        return group_by_length(self.mixture, epoch, self.loop.global_batch_size, self._image_tokens)

    @cached_property
    def _image_tokens(self) -> np.ndarray:
        """int64 image tokens of each sample of the mixture."""
        return estimated_image_tokens(self.mixture, self.processor)

    @property
    def tile_cost(self) -> int:
        """What a tile costs the encoder, in tokens of the language model."""
        return self.costs.tile_cost if self.costs else self.processor.tokens_per_tile

    def prepare(self, world_size: int) -> None:
        """Count the tokens of all samples, unless that was done or `world_size` ranks do without; may take minutes."""
        if self._counts is None and world_size > 1 and can_be_counted(self.mixture, self.processor):
            self._counts = TokenCounts(self.mixture, self.processor)

    def window(self, step: int, rank: int, world_size: int) -> StepWindow:
        self.prepare(world_size)
        skips = Skips(self.data.on_bad_sample == "error", [])
        refused: dict[str, str] = {}

        def render(index: int) -> Example:
            sample, leaving = self.mixture.unchecked(index)
            if leaving and self.processor.measures(sample.messages):
                raise sample.bad("image", next(iter(leaving.values())))
            refused.update(leaving)
            return self.render(sample)

        if self._counts is None:
            ids, examples = self.used_in(step, render, skips)
            groups, layout = self._dealt(examples, rank, world_size)
        else:
            ids, outlines = self.used_in(step, self._outline, skips)
            dealt, layout = self._dealt(outlines, rank, world_size)
            groups = _rendered(dealt, render)
        micro_batches = self.micro_batches(groups, skips, refused)
        return StepWindow(ids, micro_batches, tuple(dict.fromkeys(skips.found)), layout)

    def render(self, sample: Sample) -> Example:
        """Render a sample as the settings say. Raises BadSampleError when it can't be trained on."""
        return render_example(sample, self.processor, self.data.max_length_tokens, self.data.on_too_long)

    def bundle(self, sample: Sample) -> tuple[Example, ...]:
        """What of a sample is never parted: its example. Raises BadSampleError when it can't be trained on."""
        return (self.render(sample),)

    def micro_batches(
        self, groups: Sequence[list[Row]], skips: Skips, refused: Mapping[str, str] = MappingProxyType({})
    ) -> list[MicroBatch]:
        """The batches of groups of rows, whose images are decoded ahead. refused: path → why it may not be opened."""
        ahead = deque(
            self._decoder.start(((image.path, image.visual) for row in group for image in shown_images(row)), refused)
            for group in groups
        )
        # A group's decoder is let go with it: what it holds is in the batch by then.
        return [self._micro_batch(group, skips, ahead.popleft()) for group in groups]

    def usable(
        self, indices: Sequence[int], look: Callable[[int], Told], skips: Skips
    ) -> tuple[tuple[str, ...], list[Told]]:
        """The ids of all samples of `indices`, and what `look` makes of those that can be trained on."""
        ids: list[str] = []
        found: list[Told] = []
        for index in indices:
            try:
                outline = look(index)
            except BadSampleError as error:
                too_large = error.kind in TOO_LARGE and self.data.on_too_long != "error"
                if too_large or error.kind in self.listed_kinds:
                    skips.found.append((error.sample_id, error.kind, error.reason))
                else:
                    skips(error)
                ids.append(error.sample_id)
                continue
            ids.append(outline.sample_id)
            found.append(outline)
            if outline.cut_tokens:
                used = f"its first {outline.length} of {outline.length + outline.cut_tokens} tokens were used"
                skips.found.append((outline.sample_id, "truncated", used))
        return tuple(ids), found

    def used_in(self, step: int, look: Callable[[int], Told], skips: Skips) -> tuple[tuple[str, ...], list[Told]]:
        """`usable` of the samples of a step. Raises UserError where none is."""
        ids, found = self.usable(self.sample_indices(step), look, skips)
        if not found:
            raise UserError(f"step {step + 1}: every one of its {len(ids)} samples was skipped; see skipped.jsonl")
        return ids, found

    def _outline(self, index: int) -> Counted:
        assert self._counts is not None
        return self._counts.outline(index, self.data.max_length_tokens, self.data.on_too_long)

    def _dealt(self, examples: list[E], rank: int, world_size: int) -> tuple[list[list[Row[E]]], int]:
        """The rank's micro-batches, and the number of the whole step's layout."""
        rows = pack(examples, self.data.packing, self.data.max_length_tokens, world_size, self.tile_cost)
        return deal(rows, rank, world_size, self.loop.micro_batch_size, self.tile_cost), layout_number(rows)

    def _micro_batch(self, rows: list[Row], skips: Skips, decode: Decode) -> MicroBatch:
        batch = collate(rows, self.processor, skips, decode, self.length_multiple)
        work = work_of(rows, batch.target_count)
        return MicroBatch(batch, work.targets, work.tokens, self.costs.of(work) if self.costs else 0.0)

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> TaskOutput:
        return TaskOutput(module(micro_batch.inputs.to(next(module.parameters()).device)))


class TaskOf(Protocol):
    """Gives the task of a run that isn't there yet, whose model is known by its costs alone."""

    def __call__(
        self,
        run: FinetuneSettings,
        mixture: Mixture,
        processor: Processor,
        costs: UnitFlops | None,
        length_multiple: int,
        /,
    ) -> InstructionTask: ...


def task_of_samples(
    run: FinetuneSettings, mixture: Mixture, processor: Processor, costs: UnitFlops | None, length_multiple: int
) -> InstructionTask:
    """The task of a run that learns the answers of samples."""
    return InstructionTask(mixture, processor, run.data, run.train, costs, length_multiple)


def _rendered(groups: list[list[Row[Counted]]], render: Callable[[int], Example]) -> list[list[Row]]:
    """The same rows of rendered samples, each rendered once."""
    examples: dict[int, Example] = {}

    def filled(segment: PlacedSegment[Counted]) -> PlacedSegment:
        counted = segment.example
        if counted.index not in examples:
            examples[counted.index] = render(counted.index)
            counted.check(examples[counted.index])
        return PlacedSegment(examples[counted.index], segment.start, segment.stop, segment.parent)

    return [[Row(tuple(filled(segment) for segment in row.segments)) for row in group] for group in groups]


def layout_number(rows: Sequence[Row[E]]) -> int:
    """A number below 2³² that tells which tokens of which samples stand in which of `rows`, and in how many tiles."""
    told = [[(s.example.sample_id, s.start, s.stop, s.tiles) for s in row.segments] for row in rows]
    return zlib.crc32(repr(told).encode())


def work_of(rows: Sequence[Row], targets: int) -> Work:
    """What `rows` are for a model: a trunk counts once, and a branch sees it."""
    segments = [segment for row in rows for segment in row.segments]
    return Work(
        tiles=sum(image.visual.tile_count for row in rows for image in shown_images(row)),
        tokens=sum(row.length for row in rows),
        attention_pairs=causal_pairs([s.length for s in segments], [s.start for s in segments]),
        targets=targets,
    )


def deal(
    rows: list[Row[E]], rank: int, world_size: int, micro_batch_size: int, tile_cost: int = 1
) -> list[list[Row[E]]]:
    """The micro-batches of `rank`: rows dealt longest first, back and forth, so that ranks carry like loads.

    Where images have several tiles, rows of a round change hands until ranks are alike in tiles, too. tile_cost: what a
    tile costs, in tokens. Every rank gets the same number of micro-batches; where rows run out, one repeats the shortest
    row without targets.
    """
    ordered = sorted(rows, key=lambda row: -row.length)
    count = math.ceil(math.ceil(len(ordered) / world_size) / micro_batch_size)
    tiled = is_tiled(segment for row in rows for segment in row.segments)
    hands = _hands(ordered, world_size, tile_cost if tiled else None)
    hand = [row for row, own in zip(ordered, hands, strict=True) if own == rank]
    own = [hand[i * micro_batch_size : (i + 1) * micro_batch_size] for i in range(count)]
    return [group or [_without_targets(ordered[-1])] for group in own]


def _hands(ordered: list[Row[E]], world_size: int, tile_cost: int | None) -> list[int]:
    """For each of the rows, longest first, the rank that gets it; tile_cost None: tiles are no load of their own."""
    rounds = [number // world_size for number in range(-(-len(ordered) // world_size) * world_size)]
    seats = [n % world_size if turn % 2 == 0 else world_size - 1 - n % world_size for n, turn in enumerate(rounds)]
    if tile_cost is None:
        return seats[: len(ordered)]
    loads = [(row.length, row.tiles) for row in ordered]
    free = [(0, 0)] * (len(rounds) - len(ordered))
    return exchanged([*loads, *free], seats, tile_cost, rounds=rounds)[: len(ordered)]


def _without_targets(row: Row[E]) -> Row[E]:
    """The row's first segment alone, cut before its first supervised token: keeps a rank in step, teaches nothing."""
    segment = row.segments[0]
    stop = max(1, min(segment.stop, segment.example.first_supervised))
    return Row((PlacedSegment(segment.example, 0, stop),))
