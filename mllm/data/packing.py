"""Laying examples out in rows: alone, several to a row, or as branches on a shared trunk."""

from collections.abc import Sequence
from dataclasses import dataclass

from mllm.batch import NO_PARENT
from mllm.config import Packing
from mllm.data.example import Example


@dataclass(frozen=True)
class PlacedSegment:
    """Tokens `start:stop` of `example`, placed in a row; `parent` is the index in the row of the segment it continues."""

    example: Example
    start: int
    stop: int
    parent: int = NO_PARENT

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Row:
    segments: tuple[PlacedSegment, ...]

    @property
    def length(self) -> int:
        return _length(self.segments)


def shared_prefix_length(examples: Sequence[Example]) -> int:
    """Tokens that all examples open with and that may be stored once.

    Counted up to the first supervised token, less one: a branch's first supervised token is predicted from a place of
    its own. A prefix that would cut an image in two ends before it.
    """
    first = examples[0].tokens
    limit = min(e.tokens.supervised.index(True) for e in examples) - 1
    length = 0
    while length < limit and all(e.tokens.input_ids[length] == first.input_ids[length] for e in examples):
        length += 1
    for start, count in first.image_spans:
        if start < length < start + count:
            length = start
    return length


def _unit(examples: list[Example]) -> list[PlacedSegment]:
    """A trunk and a branch for each example, or the lone example as it is."""
    prefix = shared_prefix_length(examples) if len(examples) > 1 else 0
    if prefix <= 0:
        return [PlacedSegment(example, 0, example.length) for example in examples]
    trunk = PlacedSegment(examples[0], 0, prefix)
    return [trunk, *(PlacedSegment(e, prefix, e.length, parent=0) for e in examples)]


def _split(examples: list[Example], max_length: int) -> list[list[PlacedSegment]]:
    """Units of at most `max_length` tokens that hold all examples of one image, in order."""
    units: list[list[PlacedSegment]] = []
    current: list[Example] = []
    for example in examples:
        if current and _length(_unit([*current, example])) > max_length:
            units.append(_unit(current))
            current = []
        current.append(example)
    return [*units, _unit(current)]


def pack(examples: Sequence[Example], packing: Packing, max_length: int, ranks: int = 1) -> list[Row]:
    """Rows of at most `max_length` tokens, deterministic.

    First-fit decreasing (Johnson 1973) says how few rows suffice; the units are then spread over that many, rounded up to
    a multiple of `ranks`, so that rows are of like length and no rank waits for another.
    """
    if packing == "none":
        return [Row((PlacedSegment(e, 0, e.length),)) for e in examples]
    if packing == "samples":
        units = [[PlacedSegment(e, 0, e.length)] for e in examples]
    else:
        groups: dict[tuple[str, ...], list[Example]] = {}
        for number, example in enumerate(examples):
            key = example.images or (f"text/{number}",)
            groups.setdefault(key, []).append(example)
        units = [unit for group in groups.values() for unit in _split(group, max_length)]
    units.sort(key=lambda unit: -_length(unit))
    lengths = [_length(unit) for unit in units]
    fitted = _first_fit(lengths, max_length)
    count = min(len(units), -(-(max(fitted) + 1) // ranks) * ranks)
    spread = _spread(lengths, count)
    places = spread if _fullest(lengths, spread) <= max_length else fitted
    bins: list[list[PlacedSegment]] = [[] for _ in range(max(places) + 1)]
    for unit, place in zip(units, places, strict=True):
        offset = len(bins[place])
        bins[place] += [
            PlacedSegment(s.example, s.start, s.stop, NO_PARENT if s.parent == NO_PARENT else s.parent + offset)
            for s in unit
        ]
    return [Row(tuple(segments)) for segments in bins]


def _length(segments: Sequence[PlacedSegment]) -> int:
    return sum(segment.length for segment in segments)


def _first_fit(lengths: Sequence[int], max_length: int) -> list[int]:
    """For each of `lengths`, longest first, the first bin with room for it."""
    places: list[int] = []
    used: list[int] = []
    for length in lengths:
        place = next((i for i, filled in enumerate(used) if filled + length <= max_length), len(used))
        if place == len(used):
            used.append(0)
        used[place] += length
        places.append(place)
    return places


def _spread(lengths: Sequence[int], count: int) -> list[int]:
    """For each of `lengths`, longest first, the emptiest of `count` bins (Graham 1969)."""
    used = [0] * count
    places = []
    for length in lengths:
        place = used.index(min(used))
        used[place] += length
        places.append(place)
    return places


def _fullest(lengths: Sequence[int], places: Sequence[int]) -> int:
    used = [0] * (max(places) + 1)
    for length, place in zip(lengths, places, strict=True):
        used[place] += length
    return max(used)
