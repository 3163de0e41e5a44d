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
        return sum(segment.length for segment in self.segments)


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
        if current and sum(s.length for s in _unit([*current, example])) > max_length:
            units.append(_unit(current))
            current = []
        current.append(example)
    return [*units, _unit(current)]


def pack(examples: Sequence[Example], packing: Packing, max_length: int) -> list[Row]:
    """Rows of at most `max_length` tokens; first-fit decreasing (Johnson 1973), deterministic."""
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
    bins: list[list[PlacedSegment]] = []
    sizes: list[int] = []
    for unit in sorted(units, key=lambda u: -sum(s.length for s in u)):
        size = sum(s.length for s in unit)
        place = next((i for i, used in enumerate(sizes) if used + size <= max_length), None)
        if place is None:
            bins.append([])
            sizes.append(0)
            place = len(bins) - 1
        offset = len(bins[place])
        bins[place] += [
            PlacedSegment(s.example, s.start, s.stop, NO_PARENT if s.parent == NO_PARENT else s.parent + offset)
            for s in unit
        ]
        sizes[place] += size
    return [Row(tuple(segments)) for segments in bins]
