"""From rows to a batch of tensors; this is where pixels are decoded."""

from collections.abc import Callable, Iterator, Sequence

import torch

from mllm.batch import IGNORE_INDEX, NO_PARENT, PADDING_SEGMENT, Batch
from mllm.data.packing import PlacedSegment, Row
from mllm.errors import BadSampleError, UserError
from mllm.images.decode import read_image
from mllm.processor import Processor

OnBadSample = Callable[[BadSampleError], None]
Decode = Callable[[str], torch.Tensor]


def targets_of(segment: PlacedSegment) -> list[int]:
    """For each token of the segment, the supervised token that follows it in the same segment, or IGNORE_INDEX."""
    tokens = segment.example.tokens
    ahead = range(segment.start + 1, segment.stop)
    targets = [tokens.input_ids[i] if tokens.supervised[i] else IGNORE_INDEX for i in ahead]
    return [*targets, IGNORE_INDEX]


def shown_images(row: Row) -> Iterator[tuple[PlacedSegment, str, int]]:
    """(segment, path, number of image tokens) of every image whose tokens stand in the row, in order."""
    for segment in row.segments:
        example = segment.example
        for path, (start, count) in zip(example.images, example.tokens.image_spans, strict=True):
            if segment.start <= start < segment.stop:
                yield segment, path, count


def collate(
    rows: Sequence[Row], processor: Processor, on_bad_sample: OnBadSample, decode: Decode | None = None
) -> Batch:
    """One batch of `rows`, padded on the right to the longest.

    `decode` gives the float32 [3, S, S] pixels of an image file or raises UserError; by default the file is read here.

    Each example with an image that can't be decoded is handed to `on_bad_sample`; if that returns, the image is blank and
    the example isn't learned from: the rows keep their shape on every rank.
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
        broken = _decode_images(row, decode or reading(processor), processor, pixels)
        for segment, _, count in shown_images(row):
            counts.append(count)
            owners.append(segment.example.sample_id)
        offset = 0
        for s, segment in enumerate(row.segments):
            place = slice(offset, offset + segment.length)
            input_ids[r, place] = torch.tensor(segment.example.tokens.input_ids[segment.start : segment.stop])
            position_ids[r, place] = torch.arange(segment.start, segment.stop)
            segment_ids[r, place] = s
            parents[r, s] = segment.parent
            reason = next((broken[path] for path in segment.example.images if path in broken), None)
            if reason is None:
                targets[r, place] = torch.tensor(targets_of(segment))
            else:
                on_bad_sample(BadSampleError(segment.example.sample_id, "image", reason))
            offset += segment.length
    stacked = torch.stack(pixels) if pixels else None
    return Batch(input_ids, position_ids, targets, segment_ids, parents, stacked, tuple(counts), tuple(owners))


def reading(processor: Processor) -> Decode:
    """Reads and prepares an image file in the calling thread."""
    return lambda path: processor.pixels(read_image(path))


def _decode_images(row: Row, decode: Decode, processor: Processor, pixels: list[torch.Tensor]) -> dict[str, str]:
    """Append the pixels of the row's images to `pixels`; returns the paths that can't be decoded, and why."""
    broken: dict[str, str] = {}
    for _, path, _ in shown_images(row):
        try:
            pixels.append(decode(path))
        except UserError as error:
            side = processor.geometry.image_size_px
            pixels.append(torch.zeros(3, side, side))
            broken[path] = str(error)
    return broken
