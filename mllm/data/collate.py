"""From rows to a batch of tensors; this is where pixels are decoded, by threads ahead of their use.

Pillow lets go of the interpreter while it decodes and scales.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Literal

import torch

from mllm.batch import IGNORE_INDEX, NO_PARENT, PADDING_SEGMENT, Batch, SegmentBounds, flat_places
from mllm.data.packing import PlacedSegment, Row
from mllm.errors import BadSampleError, UserError
from mllm.media.decode import read_image
from mllm.processor import Processor

OnBadSample = Callable[[BadSampleError], None]
Decode = Callable[[str], torch.Tensor]
FEWEST_WORKERS, MOST_WORKERS = 2, 8


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


def padded_length(rows: Sequence[Row], multiple: int) -> int:
    """Tokens that each of `rows` has in one batch: those of the longest, rounded up to a multiple of `multiple`."""
    return -(-max(row.length for row in rows) // multiple) * multiple


def collate(
    rows: Sequence[Row],
    processor: Processor,
    on_bad_sample: OnBadSample,
    decode: Decode | None = None,
    length_multiple: int = 1,
) -> Batch:
    """One batch of `rows`, padded on the right to the longest, rounded up to a multiple of `length_multiple` tokens.

    `decode` gives the pixels [3, S, S] of an image file, float32 as the encoder takes them or uint8 before they are
    normalized, or raises UserError; by default the file is read here.

    Each example with an image that can't be decoded is handed to `on_bad_sample`; if that returns, the image is blank and
    the example isn't learned from: the rows keep their shape on every rank.
    """
    length = padded_length(rows, length_multiple)
    width = max(len(row.segments) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    position_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    targets = torch.full((len(rows), length), IGNORE_INDEX)
    segment_ids = torch.full((len(rows), length), PADDING_SEGMENT)
    parents = torch.full((len(rows), width), NO_PARENT)
    pixels: list[torch.Tensor | None] = []
    counts: list[int] = []
    owners: list[str] = []
    for r, row in enumerate(rows):
        broken = _decode_images(row, decode or reading(processor), pixels)
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
                on_bad_sample(BadSampleError(segment.example.sample_id, "image", reason, segment.example.place))
            offset += segment.length
    lengths = [[segment.length for segment in row.segments] for row in rows]
    target_places = flat_places(targets != IGNORE_INDEX)
    stacked = _stacked(pixels, processor)
    statistics = torch.tensor([processor.preparer.mean, processor.preparer.std])
    return Batch(
        input_ids,
        position_ids,
        segment_ids,
        parents,
        SegmentBounds.of(lengths, [[segment.parent for segment in row.segments] for row in rows], length),
        image_places=flat_places(input_ids == processor.image_token_id),
        target_places=target_places,
        target_ids=targets.flatten()[target_places],
        pixel_values=stacked,
        pixel_statistics=statistics if stacked is not None and stacked.dtype == torch.uint8 else None,
        image_token_counts=tuple(counts),
        image_owners=tuple(owners),
    )


def reading(processor: Processor) -> Decode:
    """Reads and fits an image file in the calling thread: uint8, a quarter of the bytes, normalized where they are used."""
    return lambda path: processor.fitted_pixels(read_image(path))


def _decode_images(row: Row, decode: Decode, pixels: list[torch.Tensor | None]) -> dict[str, str]:
    """Append the pixels of the row's images to `pixels`, None for those that can't be decoded; returns these, and why."""
    broken: dict[str, str] = {}
    for _, path, _ in shown_images(row):
        try:
            pixels.append(decode(path))
        except UserError as error:
            pixels.append(None)
            broken[path] = str(error)
    return broken


def _stacked(pixels: Sequence[torch.Tensor | None], processor: Processor) -> torch.Tensor | None:
    """[N, 3, S, S] with zeros for None; None without images."""
    if not pixels:
        return None
    side = processor.geometry.image_size_px
    blank = torch.zeros(3, side, side, dtype=next((image.dtype for image in pixels if image is not None), None))
    return torch.stack([blank if image is None else image for image in pixels])


class ImageDecoder:
    """Decodes with `workers` threads; with 0, in the thread that asks. Which of them does changes no pixel."""

    def __init__(self, processor: Processor, workers: int | Literal["auto"]) -> None:
        self._read = reading(processor)
        count = own_share_of_cores() if workers == "auto" else workers
        self._pool = ThreadPoolExecutor(count, "decode") if count else None

    def start(self, paths: Iterable[str], refused: Mapping[str, str] = MappingProxyType({})) -> Decode:
        """Begin with `paths`, each once; returns the function that waits for the pixels of one of them.

        The function holds the pixels as long as it lives, and raises what decoding raised. Of `refused`, path → reason,
        none is opened: UserError with the reason is raised in place of their pixels.
        """
        wanted = [path for path in dict.fromkeys(paths) if path not in refused] if self._pool else ()
        futures = {path: self._pool.submit(self._read, path) for path in wanted} if self._pool else None

        def decode(path: str) -> torch.Tensor:
            if path in refused:
                raise UserError(refused[path])
            return futures[path].result() if futures is not None else self._read(path)

        return decode


def own_share_of_cores() -> int:
    """Threads that decode where the settings leave it open: the rank's share of this machine's cores, less the one that
    computes, and within bounds that a share of one or of many cores would leave."""
    # What torchrun and DeepSpeed say of the ranks that they started on this machine.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    return min(MOST_WORKERS, max(FEWEST_WORKERS, usable_cores() // ranks - 1))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
