"""From rows to a batch of tensors; this is where pixels are decoded."""

from collections.abc import Callable, Sequence

import torch

from mllm.batch import IGNORE_INDEX, NO_PARENT, PADDING_SEGMENT, Batch
from mllm.data.packing import PlacedSegment, Row
from mllm.errors import BadSampleError, UserError
from mllm.images.decode import read_image
from mllm.processor import Processor

OnBadSample = Callable[[BadSampleError], None]


def targets_of(segment: PlacedSegment) -> list[int]:
    """For each token of the segment, the supervised token that follows it in the same segment, or IGNORE_INDEX."""
    tokens = segment.example.tokens
    ahead = range(segment.start + 1, segment.stop)
    targets = [tokens.input_ids[i] if tokens.supervised[i] else IGNORE_INDEX for i in ahead]
    return [*targets, IGNORE_INDEX]


def collate(rows: Sequence[Row], processor: Processor, on_bad_sample: OnBadSample) -> Batch:
    """One batch of `rows`, padded on the right to the longest.

    An image that can't be decoded is handed to `on_bad_sample`; if that returns, the image is blank and no example that
    shows it is learned from: the rows keep their shape on every rank.
    """
    length = max(row.length for row in rows)
    width = max(len(row.segments) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    position_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    targets = torch.full((len(rows), length), IGNORE_INDEX)
    segment_ids = torch.full((len(rows), length), PADDING_SEGMENT)
    parents = torch.full((len(rows), width), NO_PARENT)
    pixels: list[torch.Tensor] = []
    counts: list[int] = []
    owners: list[str] = []
    for r, row in enumerate(rows):
        broken = _broken_images(row, processor, on_bad_sample, pixels, counts, owners)
        offset = 0
        for s, segment in enumerate(row.segments):
            place = slice(offset, offset + segment.length)
            input_ids[r, place] = torch.tensor(segment.example.tokens.input_ids[segment.start : segment.stop])
            position_ids[r, place] = torch.arange(segment.start, segment.stop)
            segment_ids[r, place] = s
            parents[r, s] = segment.parent
            if not broken.intersection(segment.example.images):
                targets[r, place] = torch.tensor(targets_of(segment))
            offset += segment.length
    stacked = torch.stack(pixels) if pixels else None
    return Batch(input_ids, position_ids, targets, segment_ids, parents, stacked, tuple(counts), tuple(owners))


def _broken_images(
    row: Row,
    processor: Processor,
    on_bad_sample: OnBadSample,
    pixels: list[torch.Tensor],
    counts: list[int],
    owners: list[str],
) -> set[str]:
    """Decode the images whose tokens stand in the row, appending to the lists; returns those that can't be decoded."""
    broken: set[str] = set()
    for segment in row.segments:
        example = segment.example
        for path, (start, count) in zip(example.images, example.tokens.image_spans, strict=True):
            if not segment.start <= start < segment.stop:
                continue
            try:
                pixels.append(processor.pixels(read_image(path)))
            except UserError as error:
                on_bad_sample(BadSampleError(example.sample_id, "image", str(error)))
                side = processor.geometry.image_size_px
                pixels.append(torch.zeros(3, side, side))
                broken.add(path)
            counts.append(count)
            owners.append(example.sample_id)
    return broken
