"""From rows to a batch of tensors; this is where pixels are decoded, by threads ahead of their use.

Pillow lets go of the interpreter while it decodes and scales.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch

from mllm.batch import IGNORE_INDEX, NO_PARENT, PADDING_SEGMENT, Batch, SegmentBounds, flat_places, join_media
from mllm.data.example import Example
from mllm.data.packing import PlacedSegment, Row
from mllm.errors import BadSampleError, UserError
from mllm.media.visual import Visual
from mllm.processor import Processor

OnBadSample = Callable[[BadSampleError], None]
# The tiles [C, S, S] of an image, float32 as the encoder takes them or uint8 before they are normalized.
Decode = Callable[[str, Visual], list[torch.Tensor]]
FEWEST_WORKERS, MOST_WORKERS = 2, 8
NOWHERE = ""  # the path of a filler's image, which is no file


def targets_of(segment: PlacedSegment) -> list[int]:
    """For each token of the segment, the supervised token that follows it in the same segment, or IGNORE_INDEX."""
    tokens = segment.example.tokens
    ahead = range(segment.start + 1, segment.stop)
    targets = [tokens.input_ids[i] if tokens.supervised[i] else IGNORE_INDEX for i in ahead]
    return [*targets, IGNORE_INDEX]


class ShownImage(NamedTuple):
    """An image whose tokens stand in a row: its segment, its file, its first token's place in the row, what it became."""

    segment: PlacedSegment
    path: str
    place: int
    visual: Visual


def shown_images(row: Row) -> Iterator[ShownImage]:
    """Every image of a row, in order. Raises UserError, naming the sample, for one that doesn't stand there whole."""
    offset = 0
    for segment in row.segments:
        example = segment.example
        images = zip(example.images, example.tokens.image_spans, example.tokens.visuals, strict=True)
        for path, (start, count), visual in images:
            if segment.start <= start < segment.stop:
                standing = min(count, segment.stop - start)
                if standing != visual.token_count:
                    raise UserError(
                        f"sample {example.sample_id!r}: an image has {visual.token_count} features but {standing} image "
                        "tokens"
                    )
                yield ShownImage(segment, path, offset + start - segment.start, visual)
        offset += segment.length


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

    `decode` gives the tiles of an image file, or raises UserError; by default the file is read here.

    Each example with an image that can't be decoded is handed to `on_bad_sample`; if that returns, the image is blank and
    the example isn't learned from: the rows keep their shape on every rank.
    """
    rows = filled_rows(rows, processor)
    length = padded_length(rows, length_multiple)
    width = max(len(row.segments) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    position_ids = torch.zeros(processor.position_axes or 1, len(rows), length, dtype=torch.int64)
    token_types = torch.zeros(len(rows), length, dtype=torch.int64)
    targets = torch.full((len(rows), length), IGNORE_INDEX)
    segment_ids = torch.full((len(rows), length), PADDING_SEGMENT)
    parents = torch.full((len(rows), width), NO_PARENT)
    shown = [list(shown_images(row)) for row in rows]
    broken, tiles = _decode_images([image for images in shown for image in images], decode or reading(processor))
    prepared = _prepared(shown, tiles, processor)
    for r, row in enumerate(rows):
        offset = 0
        for s, segment in enumerate(row.segments):
            place, own = slice(offset, offset + segment.length), slice(segment.start, segment.stop)
            tokens = segment.example.tokens
            input_ids[r, place] = torch.tensor(tokens.input_ids[own])
            position_ids[:, r, place] = processor.positions(tokens, prepared.of(segment.example))[..., own]
            if (types := processor.token_types(tokens)) is not None:
                token_types[r, place] = types[own]
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
    media = join_media(prepared.media)
    return Batch(
        input_ids,
        position_ids if processor.position_axes else position_ids[0],
        segment_ids,
        parents,
        SegmentBounds.of(lengths, [[segment.parent for segment in row.segments] for row in rows], length),
        image_places=_image_places(shown, length),
        target_places=target_places,
        target_ids=targets.flatten()[target_places],
        media=media,
        pixel_statistics=processor.pixel_statistics(media),
        visuals=tuple(image.visual for images in shown for image in images),
        image_owners=tuple(image.segment.example.sample_id for images in shown for image in images),
        token_types=token_types if processor.has_token_types else None,
    )


def filled_rows(rows: Sequence[Row], processor: Processor) -> Sequence[Row]:
    """`rows`, the first with the processor's filler behind it where none of them shows an image."""
    filler = processor.filler
    if filler is None or any(True for row in rows for _ in shown_images(row)):
        return rows
    example = Example("", filler, (NOWHERE,) * len(filler.visuals))
    return [Row((*rows[0].segments, PlacedSegment(example, 0, example.length))), *rows[1:]]


def reading(processor: Processor) -> Decode:
    """Reads and fits an image file in the calling thread: uint8, a quarter of the bytes, normalized where they are used."""
    return lambda path, visual: processor.read_fitted_tiles(path, visual)


def _image_places(shown: Sequence[Sequence[ShownImage]], length: int) -> torch.Tensor:
    """int64 [image tokens]: where they stand in the line of all rows of `length` tokens."""
    starts = [(r * length + image.place, image.visual.token_count) for r, row in enumerate(shown) for image in row]
    return torch.cat([torch.arange(0), *(torch.arange(start, start + count) for start, count in starts)])


def _decode_images(
    shown: Sequence[ShownImage], decode: Decode
) -> tuple[dict[str, str], list[list[torch.Tensor] | None]]:
    """Path → why of the images that can't be decoded, and the tiles of each of `shown`, None for one of these."""
    broken: dict[str, str] = {}
    tiles: list[list[torch.Tensor] | None] = []
    for image in shown:
        if image.path == NOWHERE:
            tiles.append(None)
            continue
        try:
            own = decode(image.path, image.visual)
        except UserError as error:
            broken[image.path] = str(error)
            tiles.append(None)
            continue
        if len(own) != (count := image.visual.tile_count):
            name = image.segment.example.sample_id
            raise UserError(f"sample {name!r}: image {image.path!r} has {len(own)} tile(s) where {count} were planned")
        tiles.append(own)
    return broken, tiles


class _Prepared(NamedTuple):
    """What the images of a batch became: for each segment that shows some, in order, and for each sample's pictures."""

    media: list[dict[str, torch.Tensor]]
    by_pictures: dict[Hashable, dict[str, torch.Tensor]]

    def of(self, example: Example) -> Mapping[str, torch.Tensor]:
        """Those of a sample, in whichever segment they stand; none for a sample without images."""
        return self.by_pictures.get(example.pictures, {}) if example.images else {}


def _prepared(
    shown: Sequence[Sequence[ShownImage]], tiles: Sequence[list[torch.Tensor] | None], processor: Processor
) -> _Prepared:
    """Prepare the images of each segment together, blank ones for those that can't be read.

    Raises UserError, naming the sample, for images that become something else than was planned.
    """
    dtype = next((own[0].dtype for own in tiles if own), None)
    prepared, following = _Prepared([], {}), iter(tiles)
    for _, group in groupby((image for images in shown for image in images), key=lambda image: id(image.segment)):
        images = list(group)
        own = [next(following) for _ in images]
        read = [t or processor.blank(image.visual, dtype) for t, image in zip(own, images, strict=True)]
        example = images[0].segment.example
        try:
            media = processor.prepare([image.visual for image in images], read)
        except UserError as error:
            raise UserError(f"sample {example.sample_id!r}: {error}") from None
        prepared.media.append(media)
        prepared.by_pictures[example.pictures] = media
    return prepared


class ImageDecoder:
    """Decodes with `workers` threads; with 0, in the thread that asks. Which of them does changes no pixel."""

    def __init__(self, processor: Processor, workers: int | Literal["auto"]) -> None:
        self._read = reading(processor)
        count = own_share_of_cores() if workers == "auto" else workers
        self._pool = ThreadPoolExecutor(count, "decode") if count else None

    def start(self, images: Iterable[tuple[str, Visual]], refused: Mapping[str, str] = MappingProxyType({})) -> Decode:
        """Begin with `images`, files and what they became, each once; returns the function that waits for one's tiles.

        The function holds the tiles as long as it lives, and raises what decoding raised. Of `refused`, path → reason,
        none is opened: UserError with the reason is raised in place of their tiles.
        """
        wanted = [image for image in dict.fromkeys(images) if image[0] not in refused] if self._pool else ()
        futures = {image: self._pool.submit(self._read, *image) for image in wanted} if self._pool else None

        def decode(path: str, visual: Visual) -> list[torch.Tensor]:
            if path in refused:
                raise UserError(refused[path])
            return futures[path, visual].result() if futures is not None else self._read(path, visual)

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
