"""What the samples of a run amount to: lengths, rows and work, from image headers and text alone."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from statistics import median

from mllm.data.collate import padded_length, shown_images
from mllm.data.example import Example, read_sizes
from mllm.data.packing import Row, pack_bundles
from mllm.data.settings import Packing
from mllm.data.streaming import StreamedSamples
from mllm.errors import BadSampleError, UserError
from mllm.finetune.flops import UnitFlops
from mllm.finetune.task import InstructionTask, deal, work_of
from mllm.media.visual import Visual
from mllm.processor import Processor

PACKINGS: tuple[Packing, ...] = ("none", "samples", "shared_prefix")
BINS = 8


@dataclass(frozen=True)
class Lengths:
    """How a number is spread, such as the tokens of samples, image tokens included; `bins` are (from, to, count) of equal
    width."""

    minimum: int
    median: float
    mean: float
    p90: int
    maximum: int
    bins: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Shape:
    """One forward of one rank: rows of `length` positions, what their images became, supervised tokens.

    by_sample: how many of the images each sample that shows some has, in order; empty where each counts for itself.
    """

    rows: int
    length: int
    visuals: tuple[Visual, ...]
    targets: int
    by_sample: tuple[int, ...] = ()

    @property
    def together(self) -> list[tuple[Visual, ...]]:
        """The images of each sample."""
        counts = self.by_sample or (1,) * len(self.visuals)
        return [self.visuals[start:stop] for start, stop in pairwise(accumulate(counts, initial=0))]

    @property
    def images(self) -> int:
        return len(self.visuals)

    @property
    def tiles(self) -> int:
        return sum(visual.tile_count for visual in self.visuals)


@dataclass(frozen=True)
class RowFigures:
    """What a way of packing makes of an optimizer step (means over the steps looked at).

    fill: tokens / (rows · max_length_tokens). padding: positions without a token, of all positions of the micro-batches.
    micro_batches: a rank's, in the longest step. largest: the micro-batch with the most positions; most_tiled: with the
    most tiles.
    """

    packing: Packing
    rows: float
    tokens: float
    fill: float
    padding: float
    flops: float
    micro_batches: int
    largest: Shape
    most_tiled: Shape


@dataclass(frozen=True)
class ImageFigures:
    """What the images and videos read become: how many there are, tiles and image tokens of each."""

    count: int
    tiles: Lengths
    tokens: Lengths


@dataclass(frozen=True)
class DataPlan:
    """steps_read of `steps` were looked at, chosen by the run's seed (the first ones of a stream).

    images: None without any. skipped: how many of their samples can't be trained on, by kind.
    """

    samples: int
    steps: int
    steps_read: int
    samples_read: int
    lengths: Lengths
    packings: tuple[RowFigures, ...]
    images: ImageFigures | None = None
    skipped: dict[str, int] = field(default_factory=dict)


def plan_data(
    task: InstructionTask, steps: int, ranks: int, max_samples: int, unit: UnitFlops, processor: Processor
) -> DataPlan:
    """Render the samples of as many steps as make up `max_samples`, and lay them out in every way of packing.

    unit: FLOPs of the model per unit of work. Raises UserError when no sample can be trained on.
    """
    size = task.loop.global_batch_size
    chosen = list(range(min(steps, task.steps_per_epoch)))
    if len(chosen) * size > max_samples:
        wanted = max(1, max_samples // size)
        # A stream is read from its beginning on, so its first steps have to stand for all.
        chosen = chosen[:wanted] if _streams(task) else sorted(_random(task).sample(chosen, wanted))
    skipped: Counter[str] = Counter()
    batches = [_bundles(task, step, processor, skipped) for step in chosen]
    examples = [example for batch in batches for bundle in batch for example in bundle]
    if not examples:
        raise UserError(f"none of the {sum(skipped.values())} samples read can be trained on: {dict(skipped)}")
    figures = tuple(_figures([b for b in batches if b], p, ranks, task, unit) for p in PACKINGS)
    epochs, rest = divmod(steps, task.steps_per_epoch)
    samples = epochs * task.mixture.epoch_length + min(rest * size, task.mixture.epoch_length)
    lengths = _lengths([example.length for example in examples])
    images = _image_figures([visual for example in examples for visual in example.tokens.visuals])
    return DataPlan(samples, steps, len(chosen), sum(map(len, batches)), lengths, figures, images, dict(skipped))


def _image_figures(visuals: Sequence[Visual]) -> ImageFigures | None:
    if not visuals:
        return None
    tiles = _lengths([visual.tile_count for visual in visuals])
    return ImageFigures(len(visuals), tiles, _lengths([visual.token_count for visual in visuals]))


def _streams(task: InstructionTask) -> bool:
    return any(isinstance(source.samples, StreamedSamples) for source in task.mixture.sources)


def _random(task: InstructionTask) -> random.Random:
    return random.Random(f"{task.mixture.seed}/plan")


def _bundles(
    task: InstructionTask, step: int, processor: Processor, skipped: Counter[str]
) -> list[tuple[Example, ...]]:
    bundles = []
    for index in task.sample_indices(step):
        try:
            sample = task.mixture.samples[index]
            read_sizes(sample, processor)
            bundles.append(task.bundle(sample))
        except BadSampleError as error:
            skipped[error.kind] += 1
    return bundles


def _figures(
    batches: Sequence[list[tuple[Example, ...]]],
    packing: Packing,
    ranks: int,
    task: InstructionTask,
    unit: UnitFlops,
) -> RowFigures:
    data, loop = task.data, task.loop
    rows_seen = tokens = positions = micro_batches = 0
    flops = 0.0
    shapes: list[Shape] = []
    for bundles in batches:
        rows = pack_bundles(bundles, packing, data.max_length_tokens, ranks, task.tile_cost)
        rows_seen += len(rows)
        work = work_of(rows, sum(_targets(row) for row in rows))
        tokens += work.tokens
        flops += unit.of(work)
        hands = [deal(rows, rank, ranks, loop.micro_batch_size, task.tile_cost) for rank in range(ranks)]
        micro_batches = max(micro_batches, len(hands[0]))
        step_shapes = [_shape(group, task.length_multiple) for hand in hands for group in hand]
        positions += sum(shape.rows * shape.length for shape in step_shapes)
        shapes += step_shapes
    count = len(batches)
    return RowFigures(
        packing,
        rows_seen / count,
        tokens / count,
        tokens / (rows_seen * data.max_length_tokens),
        1 - tokens / positions,
        flops / count,
        micro_batches,
        max(shapes, key=lambda shape: (shape.rows * shape.length, shape.tiles, shape.targets)),
        max(shapes, key=lambda shape: (shape.tiles, shape.rows * shape.length, shape.targets)),
    )


def _shape(rows: Sequence[Row], length_multiple: int) -> Shape:
    length = padded_length(rows, length_multiple)
    shown = [image for row in rows for image in shown_images(row)]
    by_sample = tuple(len(list(own)) for _, own in groupby(shown, key=lambda image: id(image.segment)))
    return Shape(len(rows), length, tuple(i.visual for i in shown), sum(_targets(r) for r in rows), by_sample)


def _targets(row: Row) -> int:
    return sum(sum(s.example.tokens.supervised[s.start + 1 : s.stop]) for s in row.segments)


def _lengths(lengths: list[int]) -> Lengths:
    ordered = sorted(lengths)
    low, high = ordered[0], ordered[-1]
    width = -(-(high - low + 1) // BINS)
    counts = Counter((length - low) // width for length in ordered)
    bins = tuple(
        (low + n * width, low + (n + 1) * width - 1, counts[n]) for n in range(BINS) if low + n * width <= high
    )
    p90 = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return Lengths(low, median(ordered), sum(ordered) / len(ordered), p90, high, bins)
